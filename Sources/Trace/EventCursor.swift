import Foundation
import GRDB
import VMCore

/// An event as it is read.
public struct TraceEvent: Sendable {
    public var identity: EventIdentity
    /// 0 where the event has a payload or an anchor.
    public var value: UInt64
    /// Its place among all events.
    public var sequence: UInt64
    /// The exit itself, or the one before an event that is none.
    public var exit: ExitNumber
    /// The bytes of a string or a memory write.
    public var payload: ArraySlice<UInt8>?
    public var anchor: Anchor?

    public init(identity: EventIdentity, value: UInt64, sequence: UInt64, exit: ExitNumber,
                payload: ArraySlice<UInt8>? = nil, anchor: Anchor? = nil) {
        self.identity = identity
        self.value = value
        self.sequence = sequence
        self.exit = exit
        self.payload = payload
        self.anchor = anchor
    }
}

/// A place in the events of a trace, moving forwards. A copy is a place of its own.
public struct EventCursor: Sendable {
    private let reader: TraceReader
    /// The number of the chunk after the decoded one.
    private var nextChunk = 0
    private var chunk = DecodedChunk()
    /// The next event in `chunk`, and what the columns need to go on there.
    private var position = 0
    private var payload = 0
    private var anchor = 0
    /// The last exit before the next event.
    public private(set) var exit: ExitNumber
    /// The sequence number of the next event.
    public private(set) var sequence: UInt64

    /// The chunk that the cursor holds, by its first event, and the bytes that it takes; copies of a cursor share it.
    public var held: (chunk: UInt64, bytes: Int) {
        (nextChunk > 0 ? reader.chunks[nextChunk - 1].firstEvent : 0,
         chunk.raw.count + 8 * chunk.values.count + 2 * chunk.index.count
            + chunk.anchors.count * MemoryLayout<Anchor>.stride)
    }

    init(_ reader: TraceReader) {
        self.reader = reader
        exit = reader.firstExit
        sequence = reader.chunks.first?.firstEvent ?? 0
    }

    /// The next event; nil at the end of the trace. After an error the cursor stands before the damaged chunk.
    public mutating func next() throws(TraceError) -> TraceEvent? {
        if position == chunk.events {
            guard nextChunk < reader.chunks.count else { return nil }
            try load(nextChunk)
        }
        let number = Int(chunk.index[position])
        let slot = chunk.entries[number].next
        chunk.entries[number].next = slot + 1
        let entry = chunk.entries[number]
        if entry.identity.kind.isExit { exit = exit.next }
        var event = TraceEvent(
            identity: entry.identity, value: chunk.values[slot], sequence: sequence, exit: exit, payload: nil,
            anchor: nil)
        if entry.form != .plain { attach(entry.form, to: &event) }
        position += 1
        sequence += 1
        return event
    }

    /// Takes the next event if it is an exit with a value and no fault, payload or anchor; else, and where the next
    /// chunk must be read first, it moves nowhere and returns false.
    public mutating func nextPlainExit(_ identity: inout EventIdentity, _ value: inout UInt64) throws(TraceError) -> Bool {
        guard position < chunk.events else { return false }
        let number = Int(chunk.index[position])
        guard chunk.entries[number].form == .plain, chunk.entries[number].identity.kind.isExit,
              chunk.entries[number].identity.flags == 0
        else { return false }
        let slot = chunk.entries[number].next
        chunk.entries[number].next = slot + 1
        identity = chunk.entries[number].identity
        value = chunk.values[slot]
        exit = exit.next
        position += 1
        sequence += 1
        return true
    }

    /// Whether the chunk that the cursor holds has such an event, before the cursor or after it.
    public func chunkContains(where wanted: (EventIdentity) -> Bool) -> Bool {
        chunk.entries.contains { wanted($0.identity) }
    }

    @inline(never)
    private mutating func attach(_ form: EventForm, to event: inout TraceEvent) {
        switch form {
        case .plain: break
        case .payload:
            let end = payload + Int(event.value)
            event.payload = chunk.raw[payload..<end]
            event.value = 0
            payload = end
        case .anchor, .briefAnchor:
            var found = chunk.anchors[anchor]
            found.general = event.value
            event.anchor = form == .briefAnchor ? found.brief : found
            event.value = 0
            anchor += 1
        }
    }

    /// Moves to the first event after exit `target` and all that belongs to earlier exits: `next` then returns what
    /// entered after it. At or beyond the last exit that is the first event after the last exit, or the end.
    ///
    /// `seek(to: n)` followed by `next` gives the events that belong to exit n, then exit n + 1.
    public mutating func seek(to target: ExitNumber) throws(TraceError) {
        guard target > reader.firstExit else {
            self = EventCursor(reader)
            return
        }
        // The first chunk that ends at or after the exit holds it.
        let index = reader.chunks.partitioningIndex { $0.lastExit >= target }
        guard index < reader.chunks.count else { return try seek(to: reader.lastExit) }
        try load(index)
        while exit < target { guard try next() != nil else { return } }
    }

    /// Moves to event `sequence`, or to the end.
    public mutating func seek(toEvent target: UInt64) throws(TraceError) {
        guard let index = reader.chunkIndex(ofEvent: target) else {
            nextChunk = reader.chunks.count
            (chunk, position) = (DecodedChunk(), 0)
            exit = reader.lastExit
            sequence = reader.chunks.last?.endEvent ?? sequence
            return
        }
        try load(index)
        while sequence < target { guard try next() != nil else { return } }
    }

    /// Decodes chunk `index` and stands before its first event.
    private mutating func load(_ index: Int) throws(TraceError) {
        let info = reader.chunks[index]
        chunk = try reader.decodeChunk(info)
        (nextChunk, position, payload, anchor) = (index + 1, 0, chunk.payload, 0)
        exit = info.firstExit
        sequence = info.firstEvent
    }
}

extension TraceReader {
    /// Reads, checks and decodes a chunk.
    func decodeChunk(_ info: ChunkInfo) throws(TraceError) -> DecodedChunk {
        let place = "chunk \(info.firstEvent)"
        let (claims, digest, data) = try store.read { db in
            guard let row = try Row.fetchOne(
                db, sql: "SELECT id, first_exit, exits, events, raw, digest, data FROM chunk WHERE id = ?",
                arguments: [Int64(info.firstEvent)])
            else { throw TraceError.corrupt(what: "it is missing", place: place) }
            let fields = Fields(row, place: place)
            return (try Self.chunkInfo(row), UInt64(bitPattern: try fields.int(5)), try fields.blob(6))
        } as (ChunkInfo, UInt64, Data)
        // The tail of a live recording may have grown since the index was read; nothing else may have changed.
        let grown = info.firstEvent == chunks.last?.firstEvent && totals == nil
            && claims.firstExit == info.firstExit && claims.events >= info.events
        guard claims == info || grown else { throw .corrupt(what: "it changed while it was read", place: place) }
        guard data.count <= TraceFormat.Limit.chunkRaw else { throw .corrupt(what: "it is too long", place: place) }
        do throws(Malformed) {
            guard data.withUnsafeBytes({ digest64($0) }) == digest else { throw Malformed("its digest is wrong") }
            let raw = try ZstdDecompressor().decompress([UInt8](data), size: claims.rawBytes)
            return try DecodedChunk(raw: raw, events: claims.events, exits: claims.exits)
        } catch {
            throw error.at(place)
        }
    }
}
