import Dispatch
import Foundation
import GRDB
import Synchronization
import VMCore

/// A row of `chunk` on its way to the table.
struct ChunkRow {
    var firstEvent: UInt64
    var firstExit: UInt64
    var chunk: EncodedChunk

    /// Replaces the row that begins with the same event: a tail that has grown.
    func upsert(_ db: Database) throws {
        try db.cachedStatement(sql: """
            INSERT OR REPLACE INTO chunk(id, first_exit, exits, events, raw, digest, data) VALUES (?, ?, ?, ?, ?, ?, ?)
            """).execute(arguments: [
                Int64(bitPattern: firstEvent), Int64(bitPattern: firstExit), chunk.exits, chunk.events, chunk.rawBytes,
                Int64(bitPattern: chunk.digest), Data(chunk.data),
            ])
    }
}

/// Something small that goes into the next commit.
enum PendingRow: Sendable {
    case meta(MetaRow)
    case note(NoteRow)

    func write(_ db: Database) throws {
        switch self {
        case .meta(let row): try row.upsert(db)
        case .note(let row): try row.insert(db)
        }
    }
}

/// The writer's thread: takes events from the log, encodes and commits them.
///
/// It looks every 100 ms, less often where that takes more than a fiftieth of a processor, which may be the guest's only one,
/// and whenever a buffer is handed over. The tail of the buffer that is still being filled is
/// committed too; while it is short, the next look replaces its row by a longer one, so that a slow guest doesn't end
/// up with a row for each look.
final class RecorderThread: @unchecked Sendable {
    /// How old an uncommitted event may get before the thread looks, at least and at most; the commit itself comes on top.
    private static let shortestInterval = Nanoseconds.milliseconds(100)
    private static let longestInterval = Nanoseconds.milliseconds(250)
    /// Of a processor's time, looks take a part in so many.
    private static let share: UInt64 = 50
    /// Events and payload bytes up to which a tail is written again rather than left and followed by another. Encoding
    /// that many takes 2 ms, the whole cost of rewriting.
    private static let shortTail = (events: 8192, payload: 256 << 10)

    private let log: EventLog
    private let store: Store
    private let failed: UnsafeMutablePointer<Atomic<Bool>>
    private let done = DispatchSemaphore(value: 0)
    private let flushed = DispatchSemaphore(value: 0)
    private let flushing = Mutex(())
    private let flushWanted = Atomic<Bool>(false)
    private let stopWanted = Atomic<Bool>(false)
    private let shared = Mutex(Shared())

    let rawBytes = Atomic<UInt64>(0)
    let fileBytes = Atomic<UInt64>(0)

    private struct Shared {
        var pending: [PendingRow] = []
        /// Complete but for the events before them, in the order of those.
        var checkpoints: [CheckpointRow] = []
        var failure: TraceError?
        var running = false
        var committed = TraceTotals(events: 0, exits: 0, failure: nil)
    }

    /// The tail row of the current buffer: where it begins, and how far it is encoded. The thread's own.
    private struct Tail {
        /// Events, payload bytes and anchors of the buffer before the tail.
        var start = 0
        var payload = 0
        var anchors = 0
        /// Sequence number of its first event, and the last exit before it.
        var firstEvent: UInt64
        var firstExit: UInt64
        /// What the row holds.
        var events = 0
        var chunk: EncodedSizes = EncodedSizes()

        /// Goes on behind the row: what comes now gets a row of its own.
        mutating func settle() {
            start += events
            payload += chunk.payload
            anchors += chunk.anchors
            firstEvent += UInt64(events)
            firstExit += UInt64(chunk.exits)
            events = 0
            chunk = EncodedSizes()
        }

        /// Goes on in the next buffer.
        mutating func turn() {
            settle()
            (start, payload, anchors) = (0, 0, 0)
        }
    }

    private struct EncodedSizes {
        var payload = 0
        var anchors = 0
        var exits = 0
        var raw = 0
    }

    private var encoder: ChunkEncoder
    private var buffer = 0
    private var tail: Tail
    /// Bytes before compression of all rows but the tail's.
    private var settled: UInt64 = 0
    private let startExit: UInt64
    private var lastLook = hostTime()
    private var interval = RecorderThread.shortestInterval

    init(
        log: EventLog, store: Store, encoder: ChunkEncoder, firstExit: UInt64,
        failed: UnsafeMutablePointer<Atomic<Bool>>
    ) {
        self.log = log
        self.store = store
        self.encoder = encoder
        self.failed = failed
        startExit = firstExit
        tail = Tail(firstEvent: 0, firstExit: firstExit)
    }

    // MARK: For other threads

    func start() {
        shared.withLock { $0.running = true }
        measure()
        let thread = Thread { [self] in run() }
        thread.name = "vmrr-trace"
        thread.start()
    }

    /// Commits everything and ends the thread; does nothing the second time.
    func stop() {
        // Not while someone waits for a flush, which the thread must still do.
        flushing.withLock { _ in
            guard shared.withLock({ state in
                defer { state.running = false }
                return state.running
            }) else { return }
            stopWanted.store(true, ordering: .releasing)
            log.work.signal()
            done.wait()
        }
    }

    /// Returns when everything published is committed, or nothing can be any more.
    func flush() {
        // One at a time: each waits for an answer of its own.
        flushing.withLock { _ in
            guard shared.withLock({ $0.running }) else { return }
            flushWanted.store(true, ordering: .releasing)
            log.work.signal()
            flushed.wait()
        }
    }

    func add(_ row: PendingRow) { shared.withLock { $0.pending.append(row) } }
    func add(_ row: CheckpointRow) { shared.withLock { $0.checkpoints.append(row) } }

    var failure: TraceError? { shared.withLock { $0.failure } }

    /// What is in the file.
    var committed: TraceTotals { shared.withLock { $0.committed } }

    /// The last exit in the file.
    var lastCommittedExit: ExitNumber { ExitNumber(startExit + committed.exits) }

    /// Stops writing for good: the first failure counts.
    func fail(_ error: TraceError) {
        shared.withLock { $0.failure = $0.failure ?? error }
        failed.pointee.store(true, ordering: .releasing)
    }

    /// Brings `fileBytes` up to date.
    func measure() {
        var status = stat()
        if stat(store.path, &status) == 0 { fileBytes.store(UInt64(status.st_size), ordering: .relaxed) }
    }

    // MARK: The thread

    /// When to look at the tail again, by what the last look at it cost.
    static func interval(after cost: Nanoseconds) -> Nanoseconds {
        guard cost < longestInterval else { return longestInterval }
        return min(max(Nanoseconds(share * cost.rawValue), shortestInterval), longestInterval)
    }

    private func run() {
        while true {
            _ = log.work.wait(timeout: .now() + .nanoseconds(Int(interval.rawValue)))
            let stop = stopWanted.load(ordering: .acquiring)
            let flush = flushWanted.exchange(false, ordering: .acquiring)
            let due = hostTime() - lastLook >= interval
            look(tail: stop || flush || due)
            if flush { flushed.signal() }
            if stop { break }
        }
        done.signal()
    }

    /// Commits full buffers, and the tail of the current one if asked.
    private func look(tail wanted: Bool) {
        do throws(TraceError) {
            guard !failed.pointee.load(ordering: .acquiring) else { return discard() }
            var rows: [ChunkRow] = []
            while log.ring[buffer].sealed.load(ordering: .acquiring) {
                if let row = try encodeTail() { rows.append(row) }
                settled += UInt64(tail.chunk.raw)
                tail.turn()
                buffer = log.release(buffer)
                // A slow disk shall not make us collect without bound.
                if rows.count >= EventLog.buffers { try commit(&rows) }
            }
            guard wanted else { return try commit(&rows) }
            lastLook = hostTime()
            let began = threadTime()
            if let row = try encodeTail() { rows.append(row) }
            try commit(&rows)
            interval = Self.interval(after: threadTime() - began)
        } catch {
            fail(error)
            discard()
        }
    }

    /// After a failure: what comes now is lost, and the vCPU thread must not wait for it.
    private func discard() {
        while log.ring[buffer].sealed.load(ordering: .acquiring) { buffer = log.release(buffer) }
    }

    /// Encodes the current buffer from the tail's start on; nil where nothing is new.
    private func encodeTail() throws(TraceError) -> ChunkRow? {
        let source = log.ring[buffer]
        let end = source.published.pointee.load(ordering: .acquiring)
        guard end > tail.start + tail.events else { return nil }
        if tail.events >= Self.shortTail.events || tail.chunk.payload >= Self.shortTail.payload {
            settled += UInt64(tail.chunk.raw)
            tail.settle()
        }
        let records = UnsafeBufferPointer(start: source.records + tail.start, count: end - tail.start)
        let chunk = try encoder.encode(
            records, payload: source.payload + tail.payload, anchors: source.anchors + tail.anchors)
        tail.events = chunk.events
        tail.chunk = EncodedSizes(
            payload: chunk.payloadBytes, anchors: chunk.anchors, exits: chunk.exits, raw: chunk.rawBytes)
        return ChunkRow(firstEvent: tail.firstEvent, firstExit: tail.firstExit, chunk: chunk)
    }

    /// Commits `rows`, which go up to the tail's end, and whatever else waits.
    private func commit(_ rows: inout [ChunkRow]) throws(TraceError) {
        let end = tail.firstEvent + UInt64(tail.events)
        let (pending, checkpoints) = shared.withLock { state in
            let ready = state.checkpoints.prefix { $0.event <= end }
            defer {
                state.pending = []
                state.checkpoints.removeFirst(ready.count)
            }
            return (state.pending, ready)
        }
        guard !rows.isEmpty || !pending.isEmpty || !checkpoints.isEmpty else { return }
        let chunks = rows
        try store.write { db in
            for row in chunks { try row.upsert(db) }
            for row in pending { try row.write(db) }
            for row in checkpoints { try row.insert(into: db) }
        }
        rows = []
        let totals = TraceTotals(
            events: end,
            exits: tail.firstExit + UInt64(tail.chunk.exits) - startExit, failure: nil)
        shared.withLock { $0.committed = totals }
        rawBytes.store(settled + UInt64(tail.chunk.raw), ordering: .relaxed)
        measure()
    }
}
