import Foundation
import GRDB
import VMCore

/// What the table says about a chunk, without its events.
public struct ChunkInfo: Hashable, Sendable {
    /// The sequence number of its first event.
    public var firstEvent: UInt64
    /// The last exit before it: its first exit is the next.
    public var firstExit: ExitNumber
    public var events: Int
    public var exits: Int
    public var rawBytes: Int
    public var lastExit: ExitNumber { ExitNumber(firstExit.rawValue + UInt64(exits)) }
    public var endEvent: UInt64 { firstEvent + UInt64(events) }
}

/// An extent of guest pages.
public struct ExtentInfo: Hashable, Sendable {
    public var id: Int64
    public var pages: Int
    public var storedBytes: Int
}

/// Reads a trace. A trace is untrusted: whatever the file holds, every call returns, or throws a `TraceError`.
///
/// Opening reads the indexes (56 bytes a chunk, about 300 a checkpoint), nothing else; a reader is for any thread. A
/// trace that is still being recorded reads as what was committed when it was opened.
public final class TraceReader: Sendable {
    let store: Store
    /// All meta values, as JSON.
    public let metadata: [String: String]
    public let chunks: [ChunkInfo]
    /// Checkpoints up to the last exit, in the order in which they were taken.
    public let checkpoints: [CheckpointInfo]
    /// What the recording says it wrote; nil where it was killed.
    public let totals: TraceTotals?
    private let start: TraceStart
    private let slotLimit: UInt64

    public init(path: String) throws(TraceError) {
        var opened = try Store.open(path: path)
        if opened.packing.isPacked { opened.packing.dictionary = try Self.dictionary(opened) }
        store = opened
        (metadata, start, chunks, checkpoints, slotLimit) = try store.readConsistently { db in
            let last = try Row.fetchOne(db, sql: "SELECT id FROM extent ORDER BY id DESC LIMIT 1")
            let lastExtent = try last.map { try Fields($0, place: "extent").count(0, atMost: 1 << 40) } ?? 0
            let chunks = try Self.chunkIndex(db)
            let checkpoints = try CheckpointRow.list(db)
            let metadata = try MetaRow.all(db)
            let start = try Self.decode(metadata, TraceFormat.Key.start, as: TraceStart.self) ?? TraceStart()
            // No recording commits a checkpoint ahead of its events; one that is can't be reached.
            let end = chunks.last?.lastExit ?? ExitNumber(start.exit)
            let perExtent = TraceFormat.Limit.pagesPerExtent
            return (
                metadata, start, chunks, checkpoints.filter { $0.exit <= end },
                UInt64((lastExtent + 1) * perExtent)
            )
        } as ([String: String], TraceStart, [ChunkInfo], [CheckpointInfo], UInt64)
        totals = try Self.decode(metadata, TraceFormat.Key.totals, as: TraceTotals.self)
        try checkEnds()
    }
}

extension TraceReader {
    // MARK: Meta

    /// The meta value `key`; nil where there is none. Throws `.corrupt` where it isn't a `T`.
    public func meta<T: Decodable>(_ key: String, as type: T.Type) throws(TraceError) -> T? {
        try Self.decode(metadata, key, as: type)
    }

    private static func decode<T: Decodable>(
        _ metadata: [String: String], _ key: String, as type: T.Type
    ) throws(TraceError) -> T? {
        guard let json = metadata[key] else { return nil }
        return try MetaRow.decode(json, key, as: type)
    }

    /// Whether the recording came to its end, and didn't die.
    public var isFinished: Bool { totals != nil }

    /// The version of the file's format.
    public var version: Int32 { store.packing.isPacked ? TraceFormat.version : TraceFormat.recordedVersion }

    private static func dictionary(_ store: Store) throws(TraceError) -> ZstdDictionary? {
        guard let bytes = try store.read({ db in try MetaRow.dictionary(db) }) else { return nil }
        do throws(Malformed) {
            return try ZstdDictionary([UInt8](bytes))
        } catch {
            throw error.at("meta \"\(TraceFormat.Key.dictionary)\"")
        }
    }

    // MARK: Extent of the time axis

    /// The last exit before the first event.
    public var firstExit: ExitNumber { ExitNumber(start.exit) }
    public var lastExit: ExitNumber { chunks.last?.lastExit ?? firstExit }
    /// Events in the trace.
    public var events: UInt64 { (chunks.last?.endEvent ?? start.event) - start.event }

    private static func chunkIndex(_ db: Database) throws -> [ChunkInfo] {
        let rows = try Row.fetchCursor(db, sql: "SELECT id, first_exit, exits, events, raw FROM chunk ORDER BY id")
        var chunks: [ChunkInfo] = []
        while let row = try rows.next() {
            let chunk = try chunkInfo(row)
            if let last = chunks.last {
                guard last.endEvent == chunk.firstEvent, last.lastExit == chunk.firstExit else {
                    throw TraceError.corrupt(
                        what: "events are missing before it", place: "chunk \(chunk.firstEvent)")
                }
            }
            chunks.append(chunk)
        }
        return chunks
    }

    /// The first five columns of a chunk's row.
    static func chunkInfo(_ row: Row) throws(TraceError) -> ChunkInfo {
        var fields = Fields(row, place: "chunk")
        fields.place = "chunk \(try fields.int(0))"
        // Bounds that keep every sum below 2^63.
        let first = try fields.count(0, atMost: 1 << 60)
        let firstExit = try fields.count(1, atMost: 1 << 60)
        let events = try fields.count(3, atMost: TraceFormat.Limit.chunkEvents)
        let exits = try fields.count(2, atMost: events)
        let raw = try fields.count(4, atMost: TraceFormat.Limit.chunkRaw)
        guard events > 0 else { throw .corrupt(what: "it has no events", place: fields.place) }
        return ChunkInfo(
            firstEvent: UInt64(first), firstExit: ExitNumber(UInt64(firstExit)), events: events, exits: exits,
            rawBytes: raw)
    }

    /// The first chunk must be the first, and the last the last where the recording says which.
    private func checkEnds() throws(TraceError) {
        guard start.event <= 1 << 60, start.exit <= 1 << 60 else {
            throw .corrupt(what: "its start is out of range", place: "meta \"start\"")
        }
        if let first = chunks.first {
            guard first.firstEvent == start.event, first.firstExit.rawValue == start.exit else {
                throw .corrupt(what: "events are missing before it", place: "chunk \(first.firstEvent)")
            }
        }
        if let totals, totals.events != events || totals.exits != lastExit.rawValue - start.exit {
            throw .corrupt(
                what: "it has \(events) events, but \(totals.events) were recorded", place: "chunk table")
        }
    }

    // MARK: Notes and extents

    /// All notes, in the order in which they were made.
    public func notes() throws(TraceError) -> [TraceNote] {
        try store.read { db in
            var notes: [TraceNote] = []
            try NoteRow.each(db) { notes.append($0) }
            return notes
        }
    }

    /// All extents.
    public func extents() throws(TraceError) -> [ExtentInfo] {
        try store.read { db in
            let rows = try Row.fetchCursor(db, sql: "SELECT id, pages, length(data) FROM extent ORDER BY id")
            var extents: [ExtentInfo] = []
            while let row = try rows.next() {
                let fields = Fields(row, place: "extent")
                extents.append(ExtentInfo(
                    id: try fields.int(0), pages: try fields.count(1, atMost: TraceFormat.Limit.pagesPerExtent),
                    storedBytes: try fields.count(2)))
            }
            return extents
        }
    }

    // MARK: Checkpoints

    /// The latest checkpoint at or before `exit`; nil where there is none.
    public func checkpoint(atOrBefore exit: ExitNumber) -> CheckpointInfo? {
        checkpoints.filter { $0.exit <= exit }.max { ($0.exit, $0.id) < ($1.exit, $1.id) }
    }

    /// CPU and device state.
    public func state(of id: CheckpointID) throws(TraceError) -> CheckpointState {
        let blobs = try store.read { db in try CheckpointRow.blobs(id, db) }
        do throws(Malformed) {
            let dictionary = store.packing.dictionary
            let cpu = store.packing.isPacked ? Data(try Box.open(blobs.cpu, dictionary: dictionary)) : blobs.cpu
            return CheckpointState(cpu: cpu, devices: Data(try Box.open(blobs.devices, dictionary: dictionary)))
        } catch {
            throw error.at("checkpoint \(id.rawValue)")
        }
    }

    /// Calls `body` once for each page whose content a checkpoint or one of its ancestors stored: with the 4096 bytes
    /// that it has at the checkpoint, nil where it is zero. A page that isn't named is zero.
    ///
    /// Zero pages come first, the rest in no order. The trace is refused where it names a page from `pageLimit` on.
    public func loadPages(
        _ id: CheckpointID, pageLimit: UInt64, _ body: (UInt64, UnsafeRawBufferPointer?) throws -> Void
    ) throws {
        try loader(pageLimit).load(try chain(id), body)
    }

    /// The same for the pages that differ from the parent's.
    public func loadChangedPages(
        _ id: CheckpointID, pageLimit: UInt64, _ body: (UInt64, UnsafeRawBufferPointer?) throws -> Void
    ) throws {
        guard checkpoints.find(id) != nil else { throw missing(id) }
        try loader(pageLimit).load([id], body)
    }

    func loader(_ pageLimit: UInt64) -> PageLoader {
        PageLoader(store: store, pageLimit: min(pageLimit, TraceFormat.Limit.pageNumber), slotLimit: slotLimit)
    }

    /// The checkpoint and its ancestors. Opening has checked that a parent's id is less than its child's, so this ends.
    func chain(_ id: CheckpointID) throws(TraceError) -> [CheckpointID] {
        var chain: [CheckpointID] = []
        var next: CheckpointID? = id
        while let current = next {
            guard let info = checkpoints.find(current) else { throw missing(current) }
            chain.append(current)
            guard chain.count <= TraceFormat.Limit.chain else {
                throw .corrupt(what: "it rests on too many others", place: "checkpoint \(id.rawValue)")
            }
            next = info.parent
        }
        return chain
    }

    private func missing(_ id: CheckpointID) -> TraceError {
        .invalid("the trace has no checkpoint \(id.rawValue)")
    }

    // MARK: Events

    /// A cursor before the first event.
    public func cursor() -> EventCursor { EventCursor(self) }

    /// The number of the chunk that holds event `sequence`.
    func chunkIndex(ofEvent sequence: UInt64) -> Int? {
        let index = chunks.partitioningIndex { $0.endEvent > sequence }
        return index < chunks.count ? index : nil
    }
}

extension Array {
    /// The first index whose element satisfies `predicate`, which no element before and all after it do.
    package func partitioningIndex(where predicate: (Element) -> Bool) -> Int {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if predicate(self[middle]) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
