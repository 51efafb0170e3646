import VMCore

/// A point of a recording that the user marked while it was made.
public struct TraceMark: Equatable, Sendable {
    public var name: String
    /// The exit before it.
    public var exit: ExitNumber
    /// Machine time, as near as the trace has it.
    public var time: Nanoseconds

    /// The longest name, in bytes.
    public static let longestName = 256
}

extension TraceEvent {
    /// The name of a mark, without what would move a terminal's cursor; nil for other events.
    public var markName: String? {
        guard identity.kind == .mark else { return nil }
        let text = String(decoding: payload ?? [], as: UTF8.self)
        return String(String.UnicodeScalarView(text.unicodeScalars.map { $0.properties.generalCategory == .control ? " " : $0 }))
    }

    /// The machine time that the event notes; nil for other events.
    public var machineTime: Nanoseconds? {
        identity.kind == .time || identity.kind == .deviceTime ? Nanoseconds(value) : nil
    }
}

extension TraceReader {
    /// The user's marks, in their order. Reads all events.
    public func marks() throws(TraceError) -> [TraceMark] {
        var marks: [TraceMark] = []
        var time = Nanoseconds(0)
        var cursor = cursor()
        while let event = try cursor.next() {
            if let now = event.machineTime { time = max(time, now) }
            if let name = event.markName { marks.append(TraceMark(name: name, exit: event.exit, time: time)) }
        }
        return marks
    }
}
