import CKVM
import Foundation
import VMCore

/// One line for the user, on standard error: standard output belongs to the guest and to reports.
func say(_ line: String) { write(line + "\n", to: 2) }

/// Writes all of a text, or as much as the reader takes.
func write(_ text: String, to descriptor: Int32 = 1) { write(Array(text.utf8), to: descriptor) }

func write(_ bytes: [UInt8], to descriptor: Int32 = 1) {
    var rest = bytes[...]
    while !rest.isEmpty {
        let count = rest.withUnsafeBytes { Foundation.write(descriptor, $0.baseAddress, $0.count) }
        if count < 0 {
            if ckvm_errno() == EINTR { continue }
            return
        }
        rest = rest.dropFirst(count)
    }
}

/// A JSON value whose keys keep their order and whose nulls are written.
enum JSON: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral, ExpressibleByNilLiteral,
    ExpressibleByDictionaryLiteral, ExpressibleByArrayLiteral {
    case object([(String, JSON)])
    case array([JSON])
    case string(String)
    case integer(Int64)
    case unsigned(UInt64)
    case number(Double)
    case bool(Bool)
    case null

    init(stringLiteral value: String) { self = .string(value) }
    init(integerLiteral value: Int64) { self = .integer(value) }
    init(booleanLiteral value: Bool) { self = .bool(value) }
    init(nilLiteral: ()) { self = .null }
    init(dictionaryLiteral elements: (String, JSON)...) { self = .object(elements) }
    init(arrayLiteral elements: JSON...) { self = .array(elements) }

    init(_ value: String?) { self = value.map { .string($0) } ?? .null }
    init<T: UnsignedInteger>(_ value: T?) { self = value.map { .unsigned(UInt64($0)) } ?? .null }
    init<T: SignedInteger>(_ value: T?) { self = value.map { .integer(Int64($0)) } ?? .null }
    init(_ value: Double) { self = .number(value) }
    init(_ value: Bool) { self = .bool(value) }

    /// The value as text: on one line, or indented.
    func text(pretty: Bool = true, indent: String = "") -> String {
        let inner = indent + "  "
        func join(_ parts: [String], _ open: String, _ close: String) -> String {
            if parts.isEmpty { return open + close }
            return pretty
                ? open + "\n" + parts.map { inner + $0 }.joined(separator: ",\n") + "\n" + indent + close
                : open + parts.joined(separator: ",") + close
        }
        switch self {
        case .object(let members):
            return join(members.map { Self.quote($0) + (pretty ? ": " : ":") + $1.text(pretty: pretty, indent: inner) },
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

/// A bar on standard error for work that takes longer than a second; on a terminal only.
struct ProgressBar {
    private let label: String
    private let start = hostTime()
    private var last = Nanoseconds(0)
    private var isShown = false
    private let isTerminal = isatty(2) != 0

    init(_ label: String) { self.label = label }

    /// `fraction` is 0 to 1.
    mutating func update(_ fraction: Double) {
        guard isTerminal else { return }
        let now = hostTime()
        guard now - start > .seconds(1), now - last > .milliseconds(100) else { return }
        last = now
        isShown = true
        let width = 30
        let filled = Int(Double(width) * min(1, max(0, fraction)))
        write("\r\(label) [" + String(repeating: "#", count: filled) + String(repeating: ".", count: width - filled)
            + "] \(Int(fraction * 100)) %", to: 2)
    }

    /// Takes the bar away.
    mutating func finish() {
        if isShown { write("\r\u{1B}[K", to: 2) }
        isShown = false
    }
}

/// Bytes as people write them.
func humanBytes(_ bytes: UInt64) -> String {
    switch bytes {
    case ..<10_240: "\(bytes) B"
    case ..<(10 << 20): "\(bytes >> 10) KiB"
    default: "\(bytes >> 20) MiB"
    }
}

func humanSeconds(_ seconds: Double) -> String {
    seconds < 1 ? "\(Int(seconds * 1000)) ms" : "\((seconds * 100).rounded() / 100) s"
}
