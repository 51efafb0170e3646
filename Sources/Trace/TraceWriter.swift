import Foundation
import GRDB
import Synchronization
import VMCore

/// Settings of a `TraceWriter`.
public struct TraceWriterOptions: Sendable {
    /// Replace an existing file.
    public var overwrite = false
    /// zstd's level for events. 3 writes 25 million a second; 9 writes 7 to 12 million, and saves a fifth of a poll
    /// loop but one per cent of noisier traces.
    public var compressionLevel: Int32 = 3
    /// The number of the last exit before the trace.
    public var firstExit = ExitNumber.start
    /// Keep the tail only: what is older goes as checkpoints are added.
    public var keep: Retention?

    public init(
        overwrite: Bool = false, compressionLevel: Int32 = 3, firstExit: ExitNumber = .start, keep: Retention? = nil
    ) {
        self.overwrite = overwrite
        self.compressionLevel = compressionLevel
        self.firstExit = firstExit
        self.keep = keep
    }
}

/// Writes a trace.
///
/// Events are appended by one thread, the vCPU's; a thread of the writer's own compresses and commits them, at the
/// latest 200 ms after they were appended, however quiet the guest is. When it falls behind, `append` waits; nothing
/// is dropped. All that was committed survives the death of the process at any instant.
///
/// When the disk is full the file stays good, and `append`, `flush` and `finish` throw `TraceError.full` from then on.
///
/// Notes, meta values and `failure` are for any thread, pages and checkpoints for one that may be another than the
/// events'; everything else is for one thread at a time.
public final class TraceWriter: @unchecked Sendable {
    private let log: EventLog
    private let recorder: RecorderThread
    private let store: Store
    /// The producer's state. One thread at a time uses it: that is the class's contract.
    private let head: UnsafeMutablePointer<EventHead>
    private let failed: UnsafeMutablePointer<Atomic<Bool>>
    private var buffer = 0
    private var state = State.open
    private var checkpoints: CheckpointWriter
    /// Belongs to the thread that adds checkpoints, as does the line above.
    private var trimmer: Trimmer?
    private let start: Mutex<TraceStart>

    private enum State { case open, finished }

    /// Gives each page that isn't zero, in ascending order of page numbers, with a pointer to its 4096 bytes.
    public typealias Pages = ((UInt64, UnsafeRawPointer) throws(TraceError) -> Void) throws -> Void

    /// Creates `path` and starts the writer's thread. `metadata` becomes rows of `meta`.
    ///
    /// The tables and the checkpoint `first`, with `pages`, come to be in one commit: a recording that is killed before
    /// it leaves no trace, and one that is killed after it a trace with a beginning.
    ///
    /// Throws `.exists` where the file exists and may not be overwritten.
    public init(
        path: String, metadata: [String: any Encodable & Sendable] = [:], options: TraceWriterOptions = .init(),
        first: NewCheckpoint? = nil, pages: Pages = { _ in }
    ) throws(TraceError) {
        let meta = try metadata.map { key, value throws(TraceError) in try MetaRow(key: key, value: value) }
        let encoder = try ChunkEncoder(level: options.compressionLevel)
        let start = TraceStart(exit: options.firstExit.rawValue, event: 0)
        let startRow = try MetaRow(format: TraceFormat.Key.start, value: start)
        // A page in an extent with others would keep them all from being dropped.
        var checkpoints = try CheckpointWriter(
            pagesPerExtent: options.keep == nil ? TraceFormat.Limit.pagesPerExtent : 1)
        store = try Store.create(path: path, overwrite: options.overwrite) { store, db in
            for row in [startRow] + meta { try row.upsert(db) }
            try MetaRow.insertReserve(db)
            guard let first else { return }
            let file = ExtentFile(store, within: db)
            checkpoints.begin(parent: nil)
            try pages { page, bytes throws(TraceError) in try checkpoints.add(page, bytes, file) }
            try checkpoints.finish(first, event: 0).insert(into: db)
        }
        self.checkpoints = checkpoints
        self.start = Mutex(start)
        trimmer = options.keep.map { Trimmer($0) }
        if let first, let id = checkpoints.last { trimmer?.add(id, wall: first.wall) }
        // Rewriting the reserve once makes the journal as large as the ending's transaction may need.
        let journal = store
        try journal.write { db in try MetaRow.insertReserve(db) }

        log = EventLog()
        failed = .allocate(capacity: 1)
        failed.initialize(to: Atomic(false))
        head = .allocate(capacity: 1)
        head.initialize(to: EventHead(log.ring[0], events: 0, exits: options.firstExit.rawValue))
        recorder = RecorderThread(
            log: log, store: store, encoder: encoder, firstExit: options.firstExit.rawValue, failed: failed)
        recorder.start()
    }

    deinit {
        // Without `finish` the file ends as if the process had been killed, but with all events.
        recorder.stop()
        store.close()
        head.deinitialize(count: 1)
        head.deallocate()
        failed.deinitialize(count: 1)
        failed.deallocate()
    }

    // MARK: Events

    /// Events appended so far.
    public var events: UInt64 { head.pointee.events }

    /// The number of the last exit appended.
    public var exits: ExitNumber { ExitNumber(head.pointee.exits) }

    /// Bytes of the committed events before compression.
    public var rawBytes: UInt64 { recorder.rawBytes.load(ordering: .relaxed) }

    /// Bytes of the file at the last commit.
    public var fileBytes: UInt64 { recorder.fileBytes.load(ordering: .relaxed) }

    /// Why nothing is written any more; nil while all is well. Cheap: one load.
    public var failure: TraceError? {
        failed.pointee.load(ordering: .acquiring) ? recorder.failure : nil
    }

    /// Appends an event with a value.
    public func append(_ identity: EventIdentity, value: UInt64) throws(TraceError) {
        if head.pointee.count == TraceFormat.Limit.chunkEvents || failed.pointee.load(ordering: .relaxed) {
            try turn()
        }
        head.pointee.push(EventRecord(identity, .plain, value: value))
    }

    /// Appends an event with a string of bytes, at most 8 MiB: string I/O, a memory write.
    public func append(_ identity: EventIdentity, bytes: UnsafeRawBufferPointer) throws(TraceError) {
        guard bytes.count <= TraceFormat.Limit.eventPayload else {
            throw .invalid("an event of \(bytes.count) bytes; split it into pieces of at most 8 MiB")
        }
        if head.pointee.count == TraceFormat.Limit.chunkEvents
            || head.pointee.payloadCount + bytes.count > TraceFormat.Limit.chunkPayload
            || failed.pointee.load(ordering: .relaxed)
        {
            if head.pointee.count > 0 || failed.pointee.load(ordering: .relaxed) { try turn() }
            log.ring[buffer].makeRoom(payload: bytes.count)
        }
        if let source = bytes.baseAddress {
            (log.ring[buffer].payload + head.pointee.payloadCount).copyMemory(from: source, byteCount: bytes.count)
        }
        head.pointee.payloadCount += bytes.count
        head.pointee.push(EventRecord(identity, .payload, value: UInt64(bytes.count)))
    }

    /// Appends an event whose place is an anchor.
    public func append(_ identity: EventIdentity, anchor: Anchor) throws(TraceError) {
        if head.pointee.count == TraceFormat.Limit.chunkEvents
            || head.pointee.anchorCount == TraceFormat.Limit.chunkAnchors || failed.pointee.load(ordering: .relaxed)
        {
            try turn()
        }
        log.ring[buffer].anchors[head.pointee.anchorCount] = anchor
        head.pointee.anchorCount += 1
        head.pointee.push(EventRecord(identity, EventForm(anchor), value: anchor.general))
    }

    /// Appends an event of another trace.
    public func append(_ event: TraceEvent) throws(TraceError) {
        if let anchor = event.anchor {
            try append(event.identity, anchor: anchor)
        } else if let payload = event.payload {
            let outcome = payload.withUnsafeBytes { bytes in
                Result { () throws(TraceError) in try append(event.identity, bytes: bytes) }
            }
            try outcome.get()
        } else {
            try append(event.identity, value: event.value)
        }
    }

    /// Hands the buffer over and takes the next, or says why nothing is written any more.
    @inline(never)
    private func turn() throws(TraceError) {
        try check()
        buffer = log.seal(buffer)
        head.pointee.turn(to: log.ring[buffer])
        try check()
    }

    private func check() throws(TraceError) {
        if let failure { throw failure }
        if state == .finished { throw .finished }
    }

    /// Returns when everything appended so far is committed.
    public func flush() throws(TraceError) {
        try check()
        recorder.flush()
        try check()
    }

    // MARK: Meta values and notes

    /// Sets a meta value, committed with the next events.
    public func setMeta(_ key: String, _ value: some Encodable & Sendable) throws(TraceError) {
        recorder.add(.meta(try MetaRow(key: key, value: value)))
    }

    /// Adds a note at `exit`, committed with the next events.
    public func addNote(exit: ExitNumber, kind: String, text: String) throws(TraceError) {
        recorder.add(.note(try NoteRow(exit: exit, kind: kind, text: text)))
    }

    // MARK: Checkpoints

    /// Writes a checkpoint, after committing all events before it. No other thread is writing one.
    ///
    /// `pages` calls its argument for each page that may differ from the parent's, in ascending order of page numbers,
    /// with a pointer to the page's 4096 bytes. Without a parent: for each page that isn't zero, at least.
    @discardableResult
    public func writeCheckpoint(_ checkpoint: NewCheckpoint, pages: Pages) throws -> CheckpointID {
        try flush()
        guard checkpoint.exit <= exits else { throw TraceError.invalid("a checkpoint is ahead of its exit") }
        let file = ExtentFile(store)
        checkpoints.begin(parent: checkpoint.parent)
        let batch: CheckpointBatch
        do {
            try pages { page, bytes throws(TraceError) in try checkpoints.add(page, bytes, file) }
            batch = try checkpoints.finish(checkpoint, event: events)
        } catch {
            checkpoints.abandon()
            throw error
        }
        try failing { () throws(TraceError) in try store.write { db in try batch.insert(into: db) } }
        recorder.measure()
        return CheckpointID(batch.row.id)
    }

    /// Adds a page to the checkpoint that `addCheckpoint` will complete: one that may differ from the checkpoint
    /// before. Pages come in ascending order; `bytes` are the page's 4096.
    ///
    /// For one thread, which may be another than the events'.
    public func addPage(_ page: UInt64, _ bytes: UnsafeRawPointer) throws(TraceError) {
        let file = ExtentFile(store)
        try failing { () throws(TraceError) in try checkpoints.add(page, bytes, file) }
    }

    /// Completes a checkpoint of the pages added, which follows the one before, and hands it to the writer's thread:
    /// it is committed with the last of the `event` events before it, or after them.
    ///
    /// For the thread that adds the pages.
    public func addCheckpoint(_ checkpoint: NewCheckpoint, event: UInt64) throws(TraceError) {
        try failing { () throws(TraceError) in
            let batch = try checkpoints.finish(checkpoint, event: event)
            if !batch.extents.isEmpty { try ExtentFile(store).write(batch.extents) }
            recorder.add(batch.row)
            guard trimmer != nil else { return }
            trimmer!.add(CheckpointID(batch.row.id), wall: checkpoint.wall)
            guard let (extents, begins) = try trimmer!.trim(store, commit: recorder.flush) else { return }
            checkpoints.forget(extents)
            start.withLock { $0 = begins }
        }
    }

    /// Whether a flight recorder's file is larger than asked for, because what a tail needs at least is.
    public var exceedsBound: Bool { trimmer?.exceedsBound ?? false }

    /// Makes a copy of the trace as it is now, in a way that it appears under `path` when it is complete.
    ///
    /// For any thread, until `finish` has been called. Throws `.exists` where there is such a file.
    public func save(to path: String) throws(TraceError) {
        guard access(path, F_OK) != 0 else { throw .exists(path: path) }
        recorder.flush()
        if let failure { throw failure }
        let saved = try MetaRow(key: TraceSaved.key, value: TraceSaved(exit: recorder.lastCommittedExit))
        try store.copy(to: path) { db in
            try MetaRow.deleteReserve(db)
            try saved.upsert(db)
        }
    }

    /// Runs `body`; after an error nothing is written any more.
    private func failing(_ body: () throws(TraceError) -> Void) throws(TraceError) {
        do throws(TraceError) {
            try body()
        } catch {
            recorder.fail(error)
            throw error
        }
    }

    // MARK: The end

    /// Commits what is left, then the ending: `meta` and the totals. The file is complete after it and needs no other.
    ///
    /// After a failure, also where the disk is full, the ending is still stored, in room reserved for it; then the
    /// failure is thrown.
    public func finish(meta: [String: any Encodable & Sendable] = [:]) throws(TraceError) {
        if state == .finished { throw .finished }
        var rows: [MetaRow] = []
        for (key, value) in meta { rows.append(try MetaRow(key: key, value: value)) }
        state = .finished
        recorder.stop()
        let failure = recorder.failure
        // From now on an append finds out that it comes too late.
        failed.pointee.store(true, ordering: .releasing)
        let start = start.withLock { $0 }
        let totals = TraceTotals(
            events: recorder.committed.events - start.event,
            exits: recorder.lastCommittedExit.rawValue - start.exit, failure: failure?.description)
        rows.append(try MetaRow(format: TraceFormat.Key.totals, value: totals))
        var outcome = failure
        do {
            try store.write { db in
                try MetaRow.deleteReserve(db)
                for row in rows { try row.upsert(db) }
            }
        } catch {
            outcome = outcome ?? error
        }
        // Without its journal the trace is one file. Neither step can harm it: the first has nothing to roll back, the
        // second is a transaction, and is only worth its time where the reserve is a good part of the file.
        _ = try? store.read { db in
            try db.execute(sql: "PRAGMA journal_mode = DELETE")
            if failure == nil && recorder.fileBytes.load(ordering: .relaxed) < 4 << 20 { try db.execute(sql: "VACUUM") }
        }
        recorder.measure()
        store.close()
        if let outcome { throw outcome }
    }
}
