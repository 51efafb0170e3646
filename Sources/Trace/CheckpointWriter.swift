import Foundation
import GRDB
import VMCore

/// What one checkpoint adds to the file, besides the extents that went there already.
struct CheckpointBatch {
    var row: CheckpointRow
    var extents: [NewExtent]

    func insert(into db: Database) throws {
        for extent in extents { try extent.insert(into: db) }
        try row.insert(into: db)
    }
}

/// Makes the rows of checkpoints: takes their pages one by one, finds out which are new, and packs them.
///
/// Remembers where each page of the latest checkpoint is, 8 bytes a page. One thread at a time uses it.
struct CheckpointWriter {
    /// Checkpoints in a chain before the next names all pages again. Loading a checkpoint reads a map for each of
    /// the chain, some 40 µs; naming all pages costs a map, a few bytes for each run of pages, and no page.
    static let chain = 64
    /// Bytes of extents that may wait for the checkpoint's row.
    private static let waiting = 1 << 20

    private let zstd: ZstdCompressor
    private var packer: PagePacker
    /// The checkpoint whose pages are in `table`; nil where that isn't known, or one is being made.
    private var latest: CheckpointID?
    private var table = PageTable()
    /// Exit and depth of each checkpoint, by id from 1.
    private var written: [(exit: ExitNumber, depth: Int)] = []
    private var making: Making?

    /// A checkpoint whose pages are coming.
    private struct Making {
        /// Whether `table` was the parent's, so that a page that it lacks is zero in the parent.
        var known: Bool
        var parent: CheckpointID?
        var map = PageMap()
        var next: UInt64 = 0
        var dirtied = 0
        /// Bytes of extents that went to the file.
        var stored = 0
    }

    /// `pagesPerExtent` is 1 to 16.
    init(pagesPerExtent: Int = TraceFormat.Limit.pagesPerExtent) throws(TraceError) {
        zstd = try ZstdCompressor(level: 3)
        packer = PagePacker(pagesPerExtent: pagesPerExtent)
    }

    /// The last checkpoint that was made.
    var last: CheckpointID? { written.isEmpty ? nil : CheckpointID(Int64(written.count)) }

    /// Starts a checkpoint that differs from `parent`'s by the pages that are added; without one, by all from zero.
    mutating func begin(parent: CheckpointID?) {
        let known = parent == latest && latest != nil
        if !known { table = PageTable() }
        latest = nil
        making = Making(known: known, parent: parent)
    }

    /// Adds a page, 4096 bytes. Pages come in ascending order.
    mutating func add(_ page: UInt64, _ bytes: UnsafeRawPointer, _ file: ExtentFile) throws(TraceError) {
        if making == nil { begin(parent: last) }
        guard page >= making!.next, page < TraceFormat.Limit.pageNumber else {
            throw .invalid("page \(page) of a checkpoint is out of order or out of range")
        }
        making!.next = page + 1
        making!.dirtied += 1
        let content = try packer.pack(UnsafeRawBufferPointer(start: bytes, count: TraceFormat.pageBytes), file)
        switch content {
        case .zero:
            // Nothing to say where the parent has a zero there too, which it has where it says nothing.
            if table.set(page, 0) == 0, making!.known || making!.parent == nil { return }
        case .slot(let slot):
            if table.set(page, slot) == slot { return }
        }
        making!.map.append(page: page, content)
        if packer.pendingBytes >= Self.waiting {
            let extents = packer.takeClosed()
            making!.stored += extents.reduce(0) { $0 + $1.data.count }
            try file.write(extents)
        }
    }

    /// Makes the checkpoint of the pages added. `event` is the number of events before it.
    mutating func finish(_ checkpoint: NewCheckpoint, event: UInt64) throws(TraceError) -> CheckpointBatch {
        if making == nil { begin(parent: last) }
        let made = making!
        making = nil
        var checkpoint = checkpoint
        checkpoint.parent = made.parent
        var map = made.map
        var depth = try depth(of: checkpoint)
        // The pages are known where they were the parent's before, and where there is no parent.
        let known = made.known || made.parent == nil
        if known, depth > Self.chain {
            checkpoint.parent = nil
            map = table.map()
            depth = 1
        }
        let extents = packer.takeAll()
        let devices = try Box.close([UInt8](checkpoint.devices), zstd)
        let pages = try Box.close(map.encoded(), zstd)
        let state = checkpoint.cpu.count + devices.count + pages.count
        guard state <= TraceFormat.Limit.state else {
            throw .invalid("a checkpoint's state is larger than a trace holds (48 MiB)")
        }
        written.append((checkpoint.exit, depth))
        let id = CheckpointID(Int64(written.count))
        if known { latest = id } else { table = PageTable() }
        let row = CheckpointRow(
            id: id.rawValue, event: event, checkpoint: checkpoint, devices: devices, pages: pages,
            pagesDirtied: made.dirtied,
            bytesStored: extents.reduce(made.stored + state) { $0 + $1.data.count })
        return CheckpointBatch(row: row, extents: extents)
    }

    /// Stores no page by naming these extents any more.
    mutating func forget(_ extents: Set<Int64>) { packer.forget(extents) }

    /// Gives up the checkpoint that is being made.
    mutating func abandon() { making = nil }

    /// Refuses what a reader would refuse; returns the length of the chain down to the checkpoint.
    private func depth(of checkpoint: NewCheckpoint) throws(TraceError) -> Int {
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
