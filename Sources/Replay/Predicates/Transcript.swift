import Trace
import VMCore

/// What a trace says of itself without a replay: each exit, what the guest had printed by then, whether it had failed.
public final class Transcript {
    private let reader: TraceReader
    private var cursor: EventCursor
    private var outline: Outline?
    /// The first exit by which each text that was asked for had been printed; nil for never.
    private var printed: [[UInt8]: ExitNumber?] = [:]

    /// What one pass over all events finds.
    private struct Outline {
        var console: [UInt8] = []
        /// The exits that printed, and how much there was after each.
        var exits: [ExitNumber] = []
        var lengths: [Int] = []
        var failure: ExitNumber?
    }

    /// To walk so many exits takes about as long as to decode a chunk of the trace.
    private static let longestWalk: UInt64 = 1 << 16
    /// The longest console that is kept, in bytes.
    private static let longest = 256 << 20

    public init(_ reader: TraceReader) {
        self.reader = reader
        cursor = reader.cursor()
    }

    /// Reads all events where a predicate needs that. Whoever calls `console` or `hasFailed` has called this.
    public func prepare(for predicate: GuestPredicate) throws {
        guard predicate.needs.contains(.transcript), outline == nil else { return }
        var outline = Outline()
        var decoder = ConsoleDecoder()
        var cursor = reader.cursor()
        while let event = try cursor.next() {
            if outline.failure == nil, event.isFailure { outline.failure = event.exit }
            let bytes = decoder.decode(event)
            guard !bytes.isEmpty else { continue }
            guard outline.console.count + bytes.count <= Self.longest else {
                throw TraceError.invalid("the guest printed more than \(Self.longest >> 20) MiB, too much to search")
            }
            outline.console += bytes
            outline.exits.append(event.exit)
            outline.lengths.append(outline.console.count)
        }
        self.outline = outline
    }

    /// What a predicate is asked about at `exit`.
    public func moment(at exit: ExitNumber, guest: (any GuestView)?, for predicate: GuestPredicate) throws -> Moment {
        Moment(
            exit: exit, event: predicate.needs.contains(.event) ? try event(at: exit) : nil, guest: guest,
            transcript: self)
    }

    /// The event that is exit `number`; nil for the first state of the trace and beyond the last exit.
    public func event(at number: ExitNumber) throws -> TraceEvent? {
        guard number > reader.firstExit, number <= reader.lastExit else { return nil }
        let before = ExitNumber(number.rawValue - 1)
        // To go on within a chunk is cheaper than to decode it anew.
        if cursor.exit > before || before.rawValue - cursor.exit.rawValue > Self.longestWalk {
            try cursor.seek(to: before)
        }
        while let event = try cursor.next() {
            if event.exit == number, event.identity.kind.isExit { return event }
        }
        return nil
    }

    /// Everything that entered, or was noted, after exit `number` and before the next.
    public func events(after number: ExitNumber) throws -> [TraceEvent] {
        var cursor = reader.cursor()
        try cursor.seek(to: number)
        var events: [TraceEvent] = []
        while let event = try cursor.next(), !event.identity.kind.isExit {
            if event.exit == number { events.append(event) }
        }
        return events
    }

    func hasFailed(by exit: ExitNumber) -> Bool { outline?.failure.map { $0 <= exit } ?? false }

    /// What the guest had printed by `exit`.
    public func console(by exit: ExitNumber) -> ArraySlice<UInt8> {
        guard let outline else { return [] }
        let count = outline.exits.partitioningIndex { $0 > exit }
        return outline.console.prefix(count == 0 ? 0 : outline.lengths[count - 1])
    }

    func console(_ test: GuestPredicate.ConsoleTest, _ text: [UInt8], by exit: ExitNumber) -> Bool {
        switch test {
        case .contains: (printed[text] ?? find(text)).map { $0 <= exit } ?? false
        case .endsWith: console(by: exit).suffix(text.count).elementsEqual(text)
        case .matches: Glob(text).matches(console(by: exit))
        }
    }

    /// The exit that completed the first occurrence of `text`.
    private func find(_ text: [UInt8]) -> ExitNumber? {
        guard let outline else { return nil }
        var result: ExitNumber?
        if text.isEmpty {
            result = reader.firstExit
        } else if let start = outline.console.firstRange(of: text)?.upperBound {
            result = outline.exits[outline.lengths.partitioningIndex { $0 >= start }]
        }
        printed[text] = .some(result)
        return result
    }
}

extension TraceEvent {
    /// Whether the guest failed by this: another value than 0 at the debug-exit port, or a triple fault.
    var isFailure: Bool {
        identity.kind == .shutdown || identity.kind == .portWrite && identity.address == 0xF4 && value != 0
    }
}

extension ConsoleDecoder {
    /// The bytes that a recorded exit printed.
    mutating func decode(_ event: TraceEvent) -> [UInt8] {
        guard event.identity.kind == .portWrite else { return [] }
        guard var payload = event.payload.map({ Array($0) }) else {
            return decode(Exit(event.identity, value: event.value))
        }
        return payload.withUnsafeMutableBytes { decode(Exit(event.identity, data: $0)) }
    }
}

/// A pattern in which `*` stands for any bytes, newlines too, and `?` for one.
private struct Glob {
    let pattern: [UInt8]

    init(_ pattern: [UInt8]) { self.pattern = pattern }

    /// Whether the pattern is all of `text`. Takes at most the product of both lengths.
    func matches(_ text: ArraySlice<UInt8>) -> Bool {
        var (p, t) = (0, text.startIndex)
        // Where to go back to: after the last star, and one byte further in the text.
        var retry: (p: Int, t: Int)?
        while t < text.endIndex {
            if p < pattern.count, pattern[p] == UInt8(ascii: "*") {
                p += 1
                retry = (p, t + 1)
            } else if p < pattern.count, pattern[p] == UInt8(ascii: "?") || pattern[p] == text[t] {
                (p, t) = (p + 1, t + 1)
            } else if let last = retry {
                (p, t) = last
                retry = (last.p, last.t + 1)
            } else {
                return false
            }
        }
        return pattern[p...].allSatisfy { $0 == UInt8(ascii: "*") }
    }
}
