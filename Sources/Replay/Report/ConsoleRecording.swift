import Trace
import VMCore

/// What passed over a guest's console, with the machine time of each part: read from its trace, without a replay.
public struct ConsoleRecording {
    public enum Content: Equatable, Sendable {
        /// What the guest printed.
        case output([UInt8])
        /// What was typed.
        case input([UInt8])
        /// The user's mark, by its name.
        case mark(String)
    }

    public struct Part: Equatable, Sendable {
        public var time: Nanoseconds
        /// The exit that it came with, or the one before it.
        public var exit: ExitNumber
        public var content: Content

        public init(time: Nanoseconds, exit: ExitNumber, content: Content) {
            self.time = time
            self.exit = exit
            self.content = content
        }
    }

    private var cursor: EventCursor
    private var decoder = ConsoleDecoder()
    private var time = Nanoseconds(0)
    /// Output that may get longer, and what comes after it.
    private var pending: Part?
    private var following: Part?

    /// What is printed within so much time is one part: a terminal shows it at once, and a byte a part makes large files.
    private static let together = Nanoseconds.milliseconds(4)
    private static let longestPart = 1 << 16

    public init(_ reader: TraceReader) { cursor = reader.cursor() }

    /// The next part; nil at the end of the trace.
    public mutating func next() throws(TraceError) -> Part? {
        if let part = following {
            following = nil
            return part
        }
        while let event = try cursor.next() {
            if let now = event.machineTime { time = max(time, now) }
            guard let part = part(event) else { continue }
            guard case .output(let bytes) = part.content else {
                guard let before = pending else { return part }
                (pending, following) = (nil, part)
                return before
            }
            guard let before = pending, case .output(let earlier) = before.content else {
                pending = part
                continue
            }
            if time - before.time < Self.together, earlier.count < Self.longestPart {
                pending?.content = .output(earlier + bytes)
            } else {
                pending = part
                return before
            }
        }
        defer { pending = nil }
        return pending
    }

    private mutating func part(_ event: TraceEvent) -> Part? {
        switch event.identity.kind {
        case .portWrite:
            let bytes = decoder.decode(event)
            return bytes.isEmpty ? nil : Part(time: time, exit: event.exit, content: .output(bytes))
        case .serialInput: return Part(time: time, exit: event.exit, content: .input(Array(event.payload ?? [])))
        case .mark: return Part(time: time, exit: event.exit, content: .mark(event.markName ?? ""))
        default: return nil
        }
    }
}

/// Tells at which machine time the exits of a trace came, in their order.
public struct ExitClock {
    private var cursor: EventCursor
    private var time = Nanoseconds(0)

    /// A clock for the exits after `exit`.
    public init(_ reader: TraceReader, after exit: ExitNumber) throws(TraceError) {
        cursor = reader.cursor()
        try cursor.seek(to: exit)
    }

    /// The machine time of an exit that isn't before those asked for earlier; as near as the trace has it, which is 10 ms
    /// where nothing asked a device for the time.
    public mutating func time(of exit: ExitNumber) throws(TraceError) -> Nanoseconds {
        while cursor.exit < exit, let event = try cursor.next() {
            if let now = event.machineTime { time = max(time, now) }
        }
        return time
    }
}
