import Foundation
import Trace
import VMCore

/// Finds what changed a run of memory, newest first.
///
/// A checkpoint says where each page's content is stored, each content once. So where a page has the same place at two
/// checkpoints the stretch between them is passed over; the others are replayed, exit by exit, and where the engine can
/// step, instruction by instruction.
public final class WriteSearch {
    public struct Options: Sendable {
        /// The state whose page tables say where the run is, and before which changes are looked for; nil for the end.
        public var at: ExitNumber?
        /// Changes to find.
        public var limit = 20
        /// Replay every stretch: also those in which the bytes changed and changed back.
        public var isExhaustive = false

        public init() {}
    }

    /// A change of the bytes.
    public struct Write: Sendable {
        public enum Cause: Sendable {
            case instruction(SteppedInstruction)
            /// The monitor wrote it, for a device.
            case dma(TraceEvent)
            /// The guest, somewhere between the two exits.
            case interval
        }

        /// The exit before the change; it had happened by the next one.
        public var after: ExitNumber
        /// The exit at the end of the interval, in words.
        public var exit: String
        public var cause: Cause
        /// The first byte that changed, counted from the start of the run; what it and those after it were and became.
        public var offset: Int
        public var old: [UInt8]
        public var new: [UInt8]

        fileprivate init?(after: ExitNumber, exit: String, cause: Cause, from: [UInt8], to: [UInt8]) {
            let changed = from.indices.filter { from[$0] != to[$0] }
            guard let first = changed.first, let last = changed.last else { return nil }
            self.after = after
            self.exit = exit
            self.cause = cause
            offset = first
            (old, new) = (Array(from[first...last]), Array(to[first...last]))
        }
    }

    private let timeline: Timeline
    private let range: AddressRange
    private let options: Options
    private let transcript: Transcript
    /// The run in physical memory.
    private var pieces: [Range<UInt64>] = []
    public private(set) var seconds = 0.0
    /// Stretches between checkpoints, and how many of them were replayed.
    public private(set) var intervals = 0
    public private(set) var replayed = 0
    /// Whether older changes may exist.
    public private(set) var isCut = false
    /// Why there are no instructions; nil where there are.
    public private(set) var obstacle: String?
    public var progress: ((String, Double) -> Void)?

    public init(_ timeline: Timeline, range: AddressRange, options: Options) {
        self.timeline = timeline
        self.range = range
        self.options = options
        transcript = Transcript(timeline.reader)
    }

    /// Calls `found` with each change, newest first.
    public func run(_ found: (Write) -> Void) throws {
        let started = hostTime()
        let end = min(options.at ?? timeline.last, timeline.last)
        try timeline.seek(to: end)
        guard let pieces = try timeline.physical(range), pieces.allSatisfy({ content(of: $0) != nil }) else {
            throw FindError.notMapped(range, at: "exit \(end.rawValue)")
        }
        self.pieces = pieces
        let stretches = try stretches(to: end)
        intervals = stretches.count
        var count = 0
        for (index, stretch) in stretches.enumerated().reversed() where stretch.mayDiffer {
            replayed += 1
            progress?(
                "exits \(stretch.from.rawValue) to \(stretch.to.rawValue)",
                Double(intervals - index) / Double(intervals))
            let exits = try changedExits(from: stretch.from, to: stretch.to)
            for exit in exits.reversed() {
                for write in try writes(before: exit).reversed() {
                    if count == options.limit {
                        isCut = true
                        seconds = (hostTime() - started).seconds
                        return
                    }
                    found(write)
                    count += 1
                }
            }
        }
        seconds = (hostTime() - started).seconds
    }

    // MARK: Stretches

    private struct Stretch {
        var from: ExitNumber
        var to: ExitNumber
        var mayDiffer: Bool
    }

    /// The stretches between checkpoints, the last one up to `end`.
    private func stretches(to end: ExitNumber) throws -> [Stretch] {
        let pages = Set(
            pieces.flatMap { piece in
                (piece.lowerBound / UInt64(pageSize))...((piece.upperBound - 1) / UInt64(pageSize))
            }
        ).compactMap { timeline.memory.filePage(ofGuestPage: $0) }
        var images = CheckpointImages(reader: timeline.reader, memory: timeline.memory)
        var stretches: [Stretch] = []
        var last: (exit: ExitNumber, pages: [ImagePage])?
        for checkpoint in timeline.checkpoints where checkpoint.exit <= end {
            let image = try images.image(of: checkpoint.id)
            let here = pages.map { image[$0] }
            if let last, last.exit < checkpoint.exit {
                let isSame = zip(last.pages, here).allSatisfy { $0.isSame(as: $1) }
                stretches.append(
                    Stretch(from: last.exit, to: checkpoint.exit, mayDiffer: !isSame || options.isExhaustive))
            }
            last = (checkpoint.exit, here)
        }
        if let last, last.exit < end { stretches.append(Stretch(from: last.exit, to: end, mayDiffer: true)) }
        return stretches
    }

    private func content(of piece: Range<UInt64>) -> [UInt8]? {
        timeline.memory.read(GuestPhysicalAddress(piece.lowerBound), count: Int(piece.upperBound - piece.lowerBound))
    }

    /// The bytes here. The pieces are RAM: that was checked.
    private var bytes: [UInt8] { pieces.flatMap { content(of: $0) ?? [] } }

    /// The exits in whose interval the bytes changed.
    private func changedExits(from start: ExitNumber, to end: ExitNumber) throws -> [ExitNumber] {
        try timeline.seek(to: start)
        var changed: [ExitNumber] = []
        var last = bytes
        while timeline.position.exit < end {
            try timeline.step()
            let now = bytes
            if now != last { changed.append(timeline.position.exit) }
            last = now
        }
        return changed
    }

    // MARK: One interval

    /// The changes in the interval that ends with `exit`, in their order.
    private func writes(before exit: ExitNumber) throws -> [Write] {
        let start = ExitNumber(exit.rawValue - 1)
        let words = try transcript.event(at: exit)?.text ?? "exit \(exit.rawValue)"
        try timeline.seek(to: start)
        let before = bytes
        var last = before
        var writes: [Write] = []
        func note(_ cause: Write.Cause, _ now: [UInt8]) {
            if let write = Write(after: start, exit: words, cause: cause, from: last, to: now) {
                if case .instruction(let next) = cause, case .instruction(let previous)? = writes.last?.cause,
                    next.isContinuation(of: previous)
                {
                    // The same string instruction went on.
                    let first = undoing(writes.removeLast(), in: last)
                    if let joined = Write(after: start, exit: words, cause: cause, from: first, to: now) {
                        writes.append(joined)
                    }
                } else {
                    writes.append(write)
                }
            }
            last = now
        }
        do {
            try timeline.forEachInstruction(to: exit) { instruction, entered in
                if let entered, entered.identity.kind == .memoryWrite {
                    note(.dma(entered), patched(last, by: entered))
                }
                note(.instruction(instruction), bytes)
                return true
            }
            return writes
        } catch HostError.cannotLand(let reason) {
            obstacle = reason
        }
        writes = []
        last = before
        for event in try transcript.events(after: start) where event.identity.kind == .memoryWrite {
            note(.dma(event), patched(last, by: event))
        }
        try timeline.seek(to: exit)
        note(.interval, bytes)
        return writes
    }

    /// The bytes as they were before a change that led to `now`.
    private func undoing(_ write: Write, in now: [UInt8]) -> [UInt8] {
        var result = now
        result.replaceSubrange(write.offset..<(write.offset + write.old.count), with: write.old)
        return result
    }

    /// What a DMA write makes of the bytes.
    private func patched(_ bytes: [UInt8], by event: TraceEvent) -> [UInt8] {
        guard let payload = event.payload else { return bytes }
        var result = bytes
        var offset = 0
        for piece in pieces {
            for address in piece {
                let distance = address &- event.identity.address
                if distance < UInt64(payload.count) { result[offset] = payload[payload.startIndex + Int(distance)] }
                offset += 1
            }
        }
        return result
    }
}

extension SteppedInstruction {
    /// Whether this is the next turn of the same repeated string instruction.
    fileprivate func isContinuation(of other: Self) -> Bool {
        text.hasPrefix("rep") && address == other.address && position.exit == other.position.exit
            && position.instructions == other.position.instructions + 1
    }
}

extension WriteSearch.Write {
    /// When the change had happened, as a position that can be gone to.
    public var position: Position {
        if case .instruction(let instruction) = cause { return instruction.position }
        return Position(exit: after.next)
    }

    public func lines(of range: AddressRange, _ symbols: SymbolTable, _ style: Style) -> [String] {
        let place = range.address &+ UInt64(offset)
        func text(_ bytes: [UInt8]) -> String {
            let shown = 32
            return bytes.prefix(shown).map { RegisterText.hex(UInt64($0), digits: 2) }.joined(separator: " ")
                + (bytes.count > shown ? " … \(bytes.count) bytes" : "")
        }
        let who =
            switch cause {
            case .instruction(let instruction):
                style.bold(instruction.position.description) + "  at \(symbols.text(instruction.address)): "
                    + instruction.text
            case .dma(let event): "\(style.bold("after exit \(after.rawValue)"))  \(event.identity.text)"
            case .interval: "\(style.bold("after exit \(after.rawValue)"))  before \(exit)"
            }
        return [
            who, style.dim("    \(symbols.text(place)): ") + style.removed(text(old)) + " -> " + style.added(text(new)),
        ]
    }

    public func json(of range: AddressRange, _ symbols: SymbolTable) -> JSON {
        let place = range.address &+ UInt64(offset)
        var members: [(String, JSON)] = [
            ("after", JSON(after.rawValue)), ("exit", JSON(after.rawValue + 1)),
            ("position", .string(position.description)),
            ("address", JSON(place)), ("symbol", JSON(symbols.name(of: place))),
            ("old", .string(RegisterText.bytes(old))),
            ("new", .string(RegisterText.bytes(new))),
        ]
        switch cause {
        case .instruction(let instruction):
            members += [("cause", "instruction"), ("instruction", instruction.json(symbols))]
        case .dma(let event): members += [("cause", "dma"), ("event", event.json)]
        case .interval: members += [("cause", "interval")]
        }
        return .object(members)
    }
}
