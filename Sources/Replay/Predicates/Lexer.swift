/// Why a predicate isn't one, and where.
public struct GuestPredicateError: Error, Equatable, Sendable, CustomStringConvertible {
    public var message: String
    public var source: String
    /// What is wrong, as offsets in the source's UTF-8.
    public var range: Range<Int>

    /// The column of the first wrong character, from 1.
    public var column: Int { characters(before: range.lowerBound) + 1 }

    /// The message, and below it the source with the wrong part underlined.
    public var description: String {
        let line = String(String.UnicodeScalarView(source.unicodeScalars.map { $0.properties.isWhitespace ? " " : $0 }))
        let width = max(1, characters(before: range.upperBound) - characters(before: range.lowerBound))
        let mark = String(repeating: " ", count: column - 1) + "^" + String(repeating: "~", count: width - 1)
        return "column \(column): \(message)\n    \(line)\n    \(mark)"
    }

    private func characters(before offset: Int) -> Int {
        String(decoding: Array(source.utf8).prefix(offset), as: UTF8.self).unicodeScalars.count
    }
}

/// A word of the predicate language.
enum Token: Equatable {
    case number(UInt64)
    case string([UInt8])
    /// A name: letters, digits, `_`, `$` and `@`, with dots between.
    case name(String)
    /// A sign such as `==` or `(`.
    case sign(String)
    case end
}

/// Cuts a predicate into tokens.
struct Lexer {
    let source: String
    private let bytes: [UInt8]
    private var offset = 0

    /// Longest first, so that `<=` isn't `<` and `=`.
    private static let signs = [
        "..<", "...", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||",
        "<", ">", "+", "-", "*", "/", "%", "&", "|", "^", "~", "!", "(", ")", "[", "]",
    ].map { (text: $0, bytes: Array($0.utf8)) }

    init(_ source: String) {
        self.source = source
        bytes = Array(source.utf8)
    }

    func error(_ message: String, _ range: Range<Int>) -> GuestPredicateError {
        GuestPredicateError(message: message, source: source, range: range)
    }

    mutating func next() throws(GuestPredicateError) -> (token: Token, range: Range<Int>) {
        while offset < bytes.count, [0x20, 0x09, 0x0A, 0x0D].contains(bytes[offset]) { offset += 1 }
        let start = offset
        guard start < bytes.count else { return (.end, start..<start) }
        let token: Token
        switch bytes[start] {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): token = .number(try number())
        case UInt8(ascii: "\""): token = .string(try text(closing: UInt8(ascii: "\"")))
        case UInt8(ascii: "'"):
            let text = try text(closing: UInt8(ascii: "'"))
            guard text.count == 1 else { throw error("a character such as 'a' is one byte", start..<offset) }
            token = .number(UInt64(text[0]))
        case let byte where Self.startsName(byte): token = .name(name())
        default:
            let rest = bytes[start...]
            guard let sign = Self.signs.first(where: { rest.starts(with: $0.bytes) }) else {
                throw error(
                    bytes[start] == UInt8(ascii: "=") ? "equality is ==" : "this character means nothing here",
                    start..<scalarEnd(start))
            }
            offset += sign.bytes.count
            token = .sign(sign.text)
        }
        return (token, start..<offset)
    }

    private static func startsName(_ byte: UInt8) -> Bool {
        (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte) || byte == 0x5F || byte == 0x24 || byte == 0x40
    }

    private static func continuesName(_ byte: UInt8) -> Bool { startsName(byte) || (0x30...0x39).contains(byte) }

    /// A dot belongs to a name where the name goes on after it, so that `a...b` is a range.
    private mutating func name() -> String {
        let start = offset
        while offset < bytes.count {
            let isDot = bytes[offset] == 0x2E && offset + 1 < bytes.count && Self.continuesName(bytes[offset + 1])
            guard isDot || Self.continuesName(bytes[offset]) else { break }
            offset += 1
        }
        return String(decoding: bytes[start..<offset], as: UTF8.self)
    }

    private mutating func number() throws(GuestPredicateError) -> UInt64 {
        let start = offset
        while offset < bytes.count, Self.continuesName(bytes[offset]) { offset += 1 }
        let text = String(decoding: bytes[start..<offset], as: UTF8.self).lowercased().replacing("_", with: "")
        let value =
            switch text.prefix(2) {
            case "0x": UInt64(text.dropFirst(2), radix: 16)
            case "0b": UInt64(text.dropFirst(2), radix: 2)
            default: UInt64(text)
            }
        guard let value else {
            throw error("a number of at most 64 bits is expected, such as 42 or 0x2a", start..<offset)
        }
        return value
    }

    private mutating func text(closing quote: UInt8) throws(GuestPredicateError) -> [UInt8] {
        let start = offset
        var text: [UInt8] = []
        offset += 1
        while offset < bytes.count {
            let byte = bytes[offset]
            offset += 1
            if byte == quote { return text }
            text.append(byte == UInt8(ascii: "\\") ? try escape() : byte)
        }
        throw error("the text isn't closed", start..<offset)
    }

    private mutating func escape() throws(GuestPredicateError) -> UInt8 {
        let start = offset - 1
        defer { offset = min(offset + 1, bytes.count) }
        switch offset < bytes.count ? bytes[offset] : 0 {
        case UInt8(ascii: "n"): return 0x0A
        case UInt8(ascii: "r"): return 0x0D
        case UInt8(ascii: "t"): return 0x09
        case UInt8(ascii: "\\"): return UInt8(ascii: "\\")
        case UInt8(ascii: "\""): return UInt8(ascii: "\"")
        case UInt8(ascii: "'"): return UInt8(ascii: "'")
        case UInt8(ascii: "x"):
            let digits = bytes[(offset + 1)...].prefix(2)
            if digits.count == 2, let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 16) {
                offset += 2
                return value
            }
            fallthrough
        default:
            throw error(
                "\\n, \\r, \\t, \\\\, \\\", \\' and \\xHH are what a backslash can begin", start..<scalarEnd(offset))
        }
    }

    /// The offset after the character that begins at `offset`.
    private func scalarEnd(_ offset: Int) -> Int {
        var end = min(offset + 1, bytes.count)
        while end < bytes.count, bytes[end] & 0xC0 == 0x80 { end += 1 }
        return end
    }
}
