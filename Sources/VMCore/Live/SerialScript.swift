/// Timed input: what a person would have typed.
public struct SerialScript: Equatable, Sendable {
    public enum Trigger: Equatable, Sendable {
        /// Machine time since power-on.
        case at(Nanoseconds)
        /// Machine time since the line before.
        case after(Nanoseconds)
        /// Once the guest has printed this text, since the line before.
        case expect([UInt8])
    }

    public enum Action: Equatable, Sendable {
        case type([UInt8])
        /// A mark in the recording.
        case mark(String)
    }

    public struct Line: Equatable, Sendable {
        public var trigger: Trigger
        public var action: Action

        public init(trigger: Trigger, action: Action) {
            self.trigger = trigger
            self.action = action
        }
    }

    public var lines: [Line]

    public struct SyntaxError: Error, CustomStringConvertible {
        public var line: Int
        public var problem: String
        public var description: String { "line \(line): \(problem)" }
    }

    /// Parses lines of the form `100ms "text\r"`, `+50ms "text"` and `expect "prompt" "text"`; `#` starts a comment. The
    /// word `mark` before the text marks the recording with it, and types nothing.
    ///
    /// In texts `\r \n \t \\ \" \xHH` stand for bytes.
    public init(parsing source: String) throws(SyntaxError) {
        lines = []
        for (number, raw) in source.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            let line = raw.drop { $0 == " " || $0 == "\t" }
            if line.isEmpty || line.first == "#" || line == "\r" { continue }
            func fail(_ problem: String) -> SyntaxError { SyntaxError(line: number + 1, problem: problem) }
            var rest = line
            let word = rest.prefix { $0 != " " && $0 != "\t" && $0 != "\"" }
            rest = rest.dropFirst(word.count)
            let trigger: Trigger
            if word == "expect" {
                guard let prompt = Self.takeText(&rest), !prompt.isEmpty else { throw fail("expect needs a \"text\"") }
                trigger = .expect(prompt)
            } else if word.first == "+", let span = Nanoseconds(parsing: word.dropFirst()) {
                trigger = .after(span)
            } else if let moment = Nanoseconds(parsing: word) {
                trigger = .at(moment)
            } else {
                throw fail("expected a time such as 100ms, +50ms or 2s, or the word expect, not '\(word)'")
            }
            rest = rest.drop { $0 == " " || $0 == "\t" }
            let isMark = rest.hasPrefix("mark")
            if isMark { rest = rest.dropFirst(4) }
            guard let text = Self.takeText(&rest) else {
                throw fail(isMark ? "mark needs a \"name\"" : "expected a \"text\" to type")
            }
            guard rest.allSatisfy({ $0 == " " || $0 == "\t" || $0 == "\r" }) else { throw fail("more than expected: '\(rest)'") }
            lines.append(Line(trigger: trigger,
                              action: isMark ? .mark(String(decoding: text, as: UTF8.self)) : .type(text)))
        }
    }

    private static func takeText(_ rest: inout Substring) -> [UInt8]? {
        rest = rest.drop { $0 == " " || $0 == "\t" }
        guard rest.first == "\"" else { return nil }
        var bytes: [UInt8] = []
        var source = Array(rest.dropFirst().utf8)[...]
        while let byte = source.popFirst() {
            if byte == UInt8(ascii: "\"") {
                rest = Substring(decoding: source, as: UTF8.self)
                return bytes
            }
            guard byte == UInt8(ascii: "\\") else {
                bytes.append(byte)
                continue
            }
            switch source.popFirst() {
            case UInt8(ascii: "r"): bytes.append(13)
            case UInt8(ascii: "n"): bytes.append(10)
            case UInt8(ascii: "t"): bytes.append(9)
            case UInt8(ascii: "\\"): bytes.append(UInt8(ascii: "\\"))
            case UInt8(ascii: "\""): bytes.append(UInt8(ascii: "\""))
            case UInt8(ascii: "x"):
                guard let value = UInt8(String(decoding: source.prefix(2), as: UTF8.self), radix: 16), source.count >= 2
                else { return nil }
                bytes.append(value)
                source = source.dropFirst(2)
            default: return nil
            }
        }
        return nil
    }
}

extension Nanoseconds {
    /// Reads a span such as `30s`, `250ms`, `20us`, `5min` or `2h`; a number alone is seconds.
    public init?(parsing text: some StringProtocol) {
        let units: [(String, Double)] = [
            ("ms", 1e6), ("us", 1e3), ("µs", 1e3), ("ns", 1), ("min", 60e9), ("h", 3600e9), ("s", 1e9), ("", 1e9),
        ]
        for (suffix, factor) in units where text.hasSuffix(suffix) {
            let digits = text.dropLast(suffix.count)
            guard digits.first?.isNumber == true, digits.allSatisfy({ $0.isASCII && ($0.isNumber || $0 == ".") }),
                let number = Double(String(digits)), number * factor < 9e18
            else { continue }
            self.init(UInt64(number * factor))
            return
        }
        return nil
    }
}
