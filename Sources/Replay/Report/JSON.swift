/// A JSON value whose keys keep their order and whose nulls are written.
public enum JSON: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral,
    ExpressibleByNilLiteral,
    ExpressibleByDictionaryLiteral, ExpressibleByArrayLiteral, Sendable
{
    case object([(String, JSON)])
    case array([JSON])
    case string(String)
    case integer(Int64)
    case unsigned(UInt64)
    case number(Double)
    case bool(Bool)
    case null

    public init(stringLiteral value: String) { self = .string(value) }
    public init(integerLiteral value: Int64) { self = .integer(value) }
    public init(booleanLiteral value: Bool) { self = .bool(value) }
    public init(nilLiteral: ()) { self = .null }
    public init(dictionaryLiteral elements: (String, JSON)...) { self = .object(elements) }
    public init(arrayLiteral elements: JSON...) { self = .array(elements) }

    public init(_ value: String?) { self = value.map { .string($0) } ?? .null }
    public init<T: UnsignedInteger>(_ value: T?) { self = value.map { .unsigned(UInt64($0)) } ?? .null }
    public init<T: SignedInteger>(_ value: T?) { self = value.map { .integer(Int64($0)) } ?? .null }
    public init(_ value: Double) { self = .number(value) }
    public init(_ value: Bool) { self = .bool(value) }

    /// The value as text: on one line, or indented.
    public func text(pretty: Bool = true, indent: String = "") -> String {
        let inner = indent + "  "
        func join(_ parts: [String], _ open: String, _ close: String) -> String {
            if parts.isEmpty { return open + close }
            return pretty
                ? open + "\n" + parts.map { inner + $0 }.joined(separator: ",\n") + "\n" + indent + close
                : open + parts.joined(separator: ",") + close
        }
        switch self {
        case .object(let members):
            return join(
                members.map { Self.quote($0) + (pretty ? ": " : ":") + $1.text(pretty: pretty, indent: inner) },
                "{", "}")
        case .array(let values): return join(values.map { $0.text(pretty: pretty, indent: inner) }, "[", "]")
        case .string(let value): return Self.quote(value)
        case .integer(let value): return String(value)
        case .unsigned(let value): return String(value)
        case .number(let value): return value.isFinite ? String((value * 1e6).rounded() / 1e6) : "null"
        case .bool(let value): return value ? "true" : "false"
        case .null: return "null"
        }
    }

    private static func quote(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case "\n": result += "\\n"
            case "\r": result += "\\r"
            case "\t": result += "\\t"
            case _ where scalar.value < 0x20:
                let digits = String(scalar.value, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }
}
