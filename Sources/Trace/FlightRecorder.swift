import Foundation
import GRDB
import VMCore

/// How much of a recording a flight recorder keeps: its tail, from a checkpoint on.
public enum Retention: Equatable, Sendable {
    /// A file of at most so many bytes, and at times one checkpoint more.
    case bytes(UInt64)
    /// At least so much host time, and an eighth more.
    case time(Nanoseconds)

    /// Reads `512MiB` or `30s`: from 1 MiB on, from 1 s on.
    public init?(parsing text: String) {
        let units: [(String, UInt64)] = [
            ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30),
        ]
        if let (suffix, factor) = units.first(where: { text.hasSuffix($0.0) }) {
            guard let number = UInt64(text.dropLast(suffix.count)) else { return nil }
            let (bytes, overflow) = number.multipliedReportingOverflow(by: factor)
            guard !overflow, bytes >= 1 << 20 else { return nil }
            self = .bytes(bytes)
        } else {
            guard let span = Nanoseconds(parsing: text), span >= .seconds(1) else { return nil }
            self = .time(span)
        }
    }
}

/// Drops the oldest part of a recording, so that what is left replays from its oldest checkpoint.
///
/// Dropping goes in steps of a sixteenth, since each looks at the page maps of all checkpoints that stay. SQLite uses
/// the room again that it leaves. The file never shrinks, and grows only while what it holds does.
struct Trimmer {
    /// What it must know of a checkpoint to choose the one that becomes the oldest.
    private struct Kept {
        var id: CheckpointID
        var wall: Nanoseconds
    }

    private let keep: Retention
    private var kept: [Kept] = []
    /// Bytes of the file in use at the last look, and what had been added since the one before.
    private var lastUsed: UInt64 = 0
    private var growth: UInt64 = 0
    /// Whether one complete checkpoint and what follows it ever were larger than the bound.
    private(set) var exceedsBound = false

    init(_ keep: Retention) { self.keep = keep }

    /// Notes a checkpoint that was made; its row may still wait for the events before it.
    mutating func add(_ id: CheckpointID, wall: Nanoseconds) { kept.append(Kept(id: id, wall: wall)) }

    /// Drops what needn't be kept. `commit` returns when all checkpoints that were made are in the file.
    ///
    /// Returns the extents that have gone and where the trace begins now; nil where nothing was dropped.
    mutating func trim(
        _ store: Store, commit: () -> Void
    ) throws(TraceError) -> (extents: Set<Int64>, start: TraceStart)? {
        var gone: Set<Int64> = []
        var start: TraceStart?
        while let count = try excess(store, isFirst: start == nil) {
            if start == nil { commit() }
            // What isn't committed now never will be, for the writer has failed.
            guard let (extents, begins) = try drop(count, store) else { break }
            kept.removeFirst(count)
            if case .bytes = keep { lastUsed = try store.usedBytes() }
            gone.formUnion(extents)
            start = begins
        }
        return start.map { (gone, $0) }
    }

    /// How many of the oldest checkpoints can go now; nil for none.
    private mutating func excess(_ store: Store, isFirst: Bool) throws(TraceError) -> Int? {
        switch keep {
        case .time(let span):
            guard let newest = kept.last?.wall else { return nil }
            // The last one that is old enough becomes the oldest.
            let count = kept.partitioningIndex { newest - $0.wall < span } - 1
            guard count > 0, kept[count].wall - kept[0].wall >= Nanoseconds(span.rawValue / 8) else { return nil }
            return count
        case .bytes(let bound):
            let used = try store.usedBytes()
            if kept.count <= 1, used > bound { exceedsBound = true }
            // Begins before the bound, since the next checkpoint comes before the next look.
            if isFirst {
                growth = used > lastUsed ? used - lastUsed : 0
                lastUsed = used
            }
            let limit = bound - min(bound / 2, max(growth, bound / 16))
            guard used > (isFirst ? limit : limit - bound / 16), kept.count > 1 else { return nil }
            return max(1, kept.count / 16)
        }
    }

    /// Drops the oldest `count` checkpoints and what only they need, in one commit.
    private func drop(_ count: Int, _ store: Store) throws(TraceError) -> (extents: Set<Int64>, start: TraceStart)? {
        try store.write { db in
            let oldest = kept[count].id
            guard try CheckpointRow.exists(kept[kept.count - 1].id, db),
                let place = try CheckpointRow.event(of: oldest, db),
                let chunk = try Row.fetchOne(
                    db, sql: "SELECT id, first_exit FROM chunk WHERE id <= ? ORDER BY id DESC LIMIT 1",
                    arguments: [place])
            else { return nil }
            // The chunk of the oldest checkpoint stays whole; so the last chunk, which may still grow, always stays.
            let start = TraceStart(exit: UInt64(chunk[1] as Int64), event: UInt64(chunk[0] as Int64))

            var table = PageTable()
            var extents: Set<Int64> = []
            for checkpoint in kept[...count] {
                let map = try CheckpointRow.map(checkpoint.id, db)
                for slot in table.apply(map.pages, isComplete: map.isComplete) {
                    extents.insert(PageContent.extent(slot))
                }
            }
            table.forEach { extents.remove(PageContent.extent($1)) }
            for checkpoint in kept[(count + 1)...] {
                for run in try CheckpointRow.map(checkpoint.id, db).pages.runs {
                    guard case .slot(let first) = run.content else { continue }
                    for slot in first..<(first + run.count) { extents.remove(PageContent.extent(slot)) }
                }
            }

            try db.execute(sql: "DELETE FROM checkpoint WHERE id < ?", arguments: [oldest.rawValue])
            try db.execute(sql: "DELETE FROM chunk WHERE id < ?", arguments: [Int64(start.event)])
            try db.execute(sql: "DELETE FROM note WHERE exit < ?", arguments: [Int64(start.exit)])
            let delete = try db.cachedStatement(sql: "DELETE FROM extent WHERE id = ?")
            for id in extents { try delete.execute(arguments: [id]) }
            try CheckpointRow.complete(oldest, with: table.map(), db)
            try MetaRow(format: TraceFormat.Key.start, value: start).upsert(db)
            return (extents, start)
        }
    }
}

extension PageTable {
    /// Goes on to a checkpoint whose map is given: what differs, or all that isn't zero. Returns the slots that were
    /// there before and no longer are in their places.
    fileprivate mutating func apply(_ map: PageMap, isComplete: Bool) -> [UInt64] {
        var gone: [UInt64] = []
        var old = PageTable()
        if isComplete { swap(&self, &old) }
        for run in map.runs {
            for index in 0..<run.count {
                let slot: UInt64 = if case .slot(let first) = run.content { first + index } else { 0 }
                let before = set(run.page + index, slot)
                if before != 0, before != slot { gone.append(before) }
            }
        }
        old.forEach { page, slot in
            if self[page] != slot { gone.append(slot) }
        }
        return gone
    }
}

extension CheckpointRow {
    fileprivate static func exists(_ id: CheckpointID, _ db: Database) throws -> Bool {
        try event(of: id, db) != nil
    }

    /// The number of events before checkpoint `id`; nil where it isn't in the file.
    fileprivate static func event(of id: CheckpointID, _ db: Database) throws -> Int64? {
        try Int64.fetchOne(db, sql: "SELECT event FROM checkpoint WHERE id = ?", arguments: [id.rawValue])
    }

    /// The page map of checkpoint `id`, and whether it names all pages that aren't zero.
    fileprivate static func map(_ id: CheckpointID, _ db: Database) throws -> (pages: PageMap, isComplete: Bool) {
        let blobs = try blobs(id, db)
        let isRoot = try Bool.fetchOne(
            db, sql: "SELECT parent IS NULL FROM checkpoint WHERE id = ?", arguments: [id.rawValue])
        do throws(Malformed) {
            let map = try PageMap(
                Box.open(blobs.pages), pageLimit: TraceFormat.Limit.pageNumber, slotLimit: 1 << 60)
            return (map, isRoot ?? false)
        } catch {
            throw error.at("checkpoint \(id.rawValue)")
        }
    }

    /// Makes checkpoint `id` one that needs no other: `pages` are all that aren't zero.
    fileprivate static func complete(_ id: CheckpointID, with pages: PageMap, _ db: Database) throws {
        let blobs = try blobs(id, db)
        let box = try Box.close(pages.encoded(), ZstdCompressor(level: 3))
        try db.execute(
            sql: "UPDATE checkpoint SET parent = NULL, digest = ?, pages = ? WHERE id = ?",
            arguments: [
                digest(cpu: blobs.cpu, devices: blobs.devices, pages: Data(box)), Data(box), id.rawValue,
            ])
    }
}
