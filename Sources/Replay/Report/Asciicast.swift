import Foundation
import VMCore

/// A console as a file that asciinema plays.
///
/// Source: asciinema, "asciicast file format (version 2)".
public struct Asciicast {
    /// Columns and rows. A serial line doesn't know them.
    public var size: (columns: Int, rows: Int) = (80, 24)
    /// Seconds since 1970 UTC.
    public var created: Int64?
    public var title: String?
    /// Pauses are played no longer than this.
    public var idleLimit: Nanoseconds?
    /// Whether what was typed is in the file. What a guest echoes is in its output in any case.
    public var hasInput = false

    /// Bytes of characters whose rest is still to come, of output and of input.
    private var open: (output: [UInt8], input: [UInt8]) = ([], [])

    public init() {}

    /// The first line.
    public var header: String {
        var members: [(String, JSON)] = [
            ("version", JSON(2)), ("width", JSON(size.columns)), ("height", JSON(size.rows)),
        ]
        if let created { members.append(("timestamp", JSON(created))) }
        if let title { members.append(("title", .string(title))) }
        if let idleLimit { members.append(("idle_time_limit", .number(idleLimit.seconds))) }
        members.append(("env", ["TERM": "xterm-256color"]))
        return JSON.object(members).text(pretty: false) + "\n"
    }

    /// The line of a part of the console; empty where nothing is to be shown yet.
    public mutating func line(_ part: ConsoleRecording.Part) -> String {
        switch part.content {
        case .output(let bytes): return line(part.time, "o", Self.text(bytes, &open.output))
        case .input(let bytes): return hasInput ? line(part.time, "i", Self.text(bytes, &open.input)) : ""
        case .mark(let name): return line(part.time, "m", name)
        }
    }

    private func line(_ time: Nanoseconds, _ code: String, _ text: String) -> String {
        if text.isEmpty, code != "m" { return "" }
        let row: JSON = [.number(time.seconds), .string(code), .string(text)]
        return row.text(pretty: false) + "\n"
    }

    /// The text of `bytes` and of what was left open before; a character that is cut off at the end is left open.
    static func text(_ bytes: [UInt8], _ open: inout [UInt8]) -> String {
        let all = open + bytes
        let whole = all.count - unfinished(all)
        open = Array(all[whole...])
        return String(decoding: all[..<whole], as: UTF8.self)
    }

    /// How many bytes at the end begin a character that needs more of them.
    private static func unfinished(_ bytes: [UInt8]) -> Int {
        for (back, byte) in bytes.reversed().prefix(3).enumerated() where byte & 0xC0 != 0x80 {
            let length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1
            return length > back + 1 ? back + 1 : 0
        }
        return 0
    }
}
