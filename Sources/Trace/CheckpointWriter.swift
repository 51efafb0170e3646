import Foundation
import GRDB
import VMCore

/// What one checkpoint adds to the file.
struct CheckpointBatch {
    var row: CheckpointRow
    var extents: [NewExtent]

    func insert(into db: Database) throws {
        for extent in extents { try extent.insert(into: db) }
        try row.insert(into: db)
    }
}

/// Prepares checkpoints: finds out which pages are new, packs them, and makes the rows. Writes nothing itself, so that
/// preparing can move to another thread.
///
/// Remembers where each page of the latest checkpoint is, about 40 bytes a page that isn't zero.
struct CheckpointWriter {
    private let zstd: ZstdCompressor
    private var packer = PagePacker()
    private var latest: CheckpointID?
    private var latestPages: [UInt64: UInt64] = [:]
    /// Exit and depth of each checkpoint, by id from 1.
    private var written: [(exit: ExitNumber, depth: Int)] = []

    init() throws(TraceError) { zstd = try ZstdCompressor(level: 3) }

    mutating func prepare(
        _ checkpoint: NewCheckpoint, event: UInt64, store: Store,
        pages: ((UInt64, UnsafeRawPointer) throws(TraceError) -> Void) throws -> Void
    ) throws -> CheckpointBatch {
        let depth = try check(checkpoint)
        let known = checkpoint.parent == latest && latest != nil
        if !known { latestPages = [:] }
        var map = PageMap()
        var next: UInt64 = 0
        var dirtied = 0
        try pages { page, bytes throws(TraceError) in
            guard page >= next, page < TraceFormat.Limit.pageNumber else {
                throw .invalid("page \(page) of a checkpoint is out of order or out of range")
            }
            next = page + 1
            dirtied += 1
            let content = try packer.pack(
                UnsafeRawBufferPointer(start: bytes, count: TraceFormat.pageBytes)
            ) { id throws(TraceError) in try store.read { db in try readExtent(id, db) } }
            switch content {
            case .zero:
                // Nothing to say where the parent has a zero there too, which it has where it says nothing.
                let wasZero = latestPages.removeValue(forKey: page) == nil
                if wasZero && (known || checkpoint.parent == nil) { return }
            case .slot(let slot):
                if latestPages.updateValue(slot, forKey: page) == slot { return }
            }
            map.append(page: page, content)
        }
        let id = Int64(written.count + 1)
        written.append((checkpoint.exit, depth))
        latest = CheckpointID(id)
        if !known && checkpoint.parent != nil {
            // The parent isn't the latest, so its pages aren't known any more; nor are this one's.
            latest = nil
            latestPages = [:]
        }
        let extents = packer.takePending()
        let devices = try Box.close([UInt8](checkpoint.devices), zstd)
        let encodedMap = try Box.close(map.encoded(), zstd)
        guard checkpoint.cpu.count + devices.count + encodedMap.count <= TraceFormat.Limit.state else {
            throw TraceError.invalid("a checkpoint's state is larger than a trace holds (48 MiB)")
        }
        let stored = extents.reduce(checkpoint.cpu.count + devices.count + encodedMap.count) { $0 + $1.data.count }
        let row = CheckpointRow(
            id: id, event: event, checkpoint: checkpoint, devices: devices, pages: encodedMap, pagesDirtied: dirtied,
            bytesStored: stored)
        return CheckpointBatch(row: row, extents: extents)
    }

    /// Refuses what a reader would refuse; returns the length of the chain up to the parent.
    private func check(_ checkpoint: NewCheckpoint) throws(TraceError) -> Int {
        guard (checkpoint.position?.count ?? 0) <= TraceFormat.Limit.position else {
            throw .invalid("a checkpoint's position is longer than 1 MiB")
        }
        guard let parent = checkpoint.parent else { return 1 }
        guard parent.rawValue >= 1, parent.rawValue <= Int64(written.count) else {
            throw .invalid("the parent checkpoint \(parent.rawValue) doesn't exist")
        }
        let before = written[Int(parent.rawValue) - 1]
        guard before.exit <= checkpoint.exit else {
            throw .invalid("a checkpoint is at an earlier exit than its parent")
        }
        guard before.depth < TraceFormat.Limit.chain else {
            throw .invalid("too many checkpoints in a chain; take one without a parent")
        }
        return before.depth + 1
    }
}
