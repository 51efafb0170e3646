import Foundation
import GRDB

// An extent: up to 16 pages, one after the other. Its data is an LZ4 block, or the pages as they are where LZ4 wouldn't
// be shorter; the length tells which. The writer (`PagePacker`) and the reader (`ExtentCache`) of it follow.

/// An extent on its way to the table.
struct NewExtent {
    var id: Int64
    var pages: Int
    var digest: ContentDigest
    var data: [UInt8]

    init(id: Int64, content: [UInt8]) {
        self.id = id
        pages = content.count / TraceFormat.pageBytes
        digest = ContentDigest(content)
        data = LZ4.compress(content) ?? content
    }

    func insert(into db: Database) throws {
        try db.cachedStatement(sql: "INSERT INTO extent(id, pages, digest, data) VALUES (?, ?, ?, ?)")
            .execute(arguments: [id, pages, Data(digest.canonical), Data(data)])
    }
}

/// Reads an extent's pages and checks them.
func readExtent(_ id: Int64, _ db: Database) throws -> [UInt8] {
    let place = "extent \(id)"
    guard let row = try Row.fetchOne(db, sql: "SELECT pages, digest, data FROM extent WHERE id = ?", arguments: [id])
    else { throw TraceError.corrupt(what: "it is missing", place: place) }
    let fields = Fields(row, place: place)
    let pages = try fields.count(0, atMost: TraceFormat.Limit.pagesPerExtent)
    let size = pages * TraceFormat.pageBytes
    let data = try fields.blob(2)
    guard pages > 0, data.count <= size else {
        throw TraceError.corrupt(what: "\(data.count) bytes of data for \(pages) pages", place: place)
    }
    do throws(Malformed) {
        let content: [UInt8] = if data.count == size {
            Array(data)
        } else {
            try LZ4.decompress(Array(data), size: size)
        }
        guard try fields.matches(1, ContentDigest(content)) else { throw Malformed("its digest is wrong") }
        return content
    } catch {
        throw error.at(place)
    }
}

extension Fields {
    fileprivate func matches(_ column: Int, _ digest: ContentDigest) throws(Malformed) -> Bool {
        do { return try blob(column) == Data(digest.canonical) } catch { throw Malformed("its digest is no blob") }
    }
}

/// The content of a few extents, least recently used ones forgotten.
struct ExtentCache {
    private var content: [Int64: (bytes: [UInt8], used: UInt64)] = [:]
    private var clock: UInt64 = 0
    /// Extents to keep, 64 KiB each.
    private let capacity: Int

    init(capacity: Int) { self.capacity = capacity }

    mutating func insert(_ id: Int64, _ bytes: [UInt8]) {
        if content.count >= capacity, let oldest = content.min(by: { $0.value.used < $1.value.used }) {
            content[oldest.key] = nil
        }
        clock += 1
        content[id] = (bytes, clock)
    }

    mutating func bytes(_ id: Int64, else load: (Int64) throws(TraceError) -> [UInt8]) throws(TraceError) -> [UInt8] {
        if let found = content[id]?.bytes {
            clock += 1
            content[id]!.used = clock
            return found
        }
        let loaded = try load(id)
        insert(id, loaded)
        return loaded
    }
}

/// Turns pages into extents, each different content once. Knows no file: it is given a way to read an extent back.
///
/// Memory: about 50 bytes for each different page of the recording, and 2 MiB.
struct PagePacker {
    /// Where each content is that was stored.
    private var slots: [ContentDigest: UInt64] = [:]
    private var cache = ExtentCache(capacity: 32)
    private var open: [UInt8] = []
    private var nextID: Int64 = 1
    /// Closed extents that aren't in the file yet.
    private(set) var pending: [NewExtent] = []

    /// The slot of `page`'s content, or zero. A slot with the same digest is compared byte by byte; pages whose
    /// digests agree by accident are stored apart.
    mutating func pack(
        _ page: UnsafeRawBufferPointer, load: (Int64) throws(TraceError) -> [UInt8]
    ) throws(TraceError) -> PageContent {
        if isZero(page) { return .zero }
        let digest = ContentDigest(page)
        if let slot = slots[digest], try content(of: slot, equals: page, load) { return .slot(slot) }
        let position = open.count / TraceFormat.pageBytes
        let slot = UInt64(nextID) * UInt64(TraceFormat.Limit.pagesPerExtent) + UInt64(position)
        if slots[digest] == nil { slots[digest] = slot }
        open += page
        if position + 1 == TraceFormat.Limit.pagesPerExtent { close() }
        return .slot(slot)
    }

    /// Closes the extent that is being filled; returns all that must go to the file now.
    mutating func takePending() -> [NewExtent] {
        if !open.isEmpty { close() }
        defer { pending = [] }
        return pending
    }

    private mutating func close() {
        pending.append(NewExtent(id: nextID, content: open))
        cache.insert(nextID, open)
        nextID += 1
        open = []
        open.reserveCapacity(TraceFormat.Limit.pagesPerExtent * TraceFormat.pageBytes)
    }

    private mutating func content(
        of slot: UInt64, equals page: UnsafeRawBufferPointer, _ load: (Int64) throws(TraceError) -> [UInt8]
    ) throws(TraceError) -> Bool {
        let id = PageContent.extent(slot)
        let bytes: [UInt8]
        if id == nextID {
            bytes = open
        } else {
            let pending = pending
            bytes = try cache.bytes(id) { id throws(TraceError) in
                guard let extent = pending.first(where: { $0.id == id }) else { return try load(id) }
                let size = extent.pages * TraceFormat.pageBytes
                if extent.data.count == size { return extent.data }
                do throws(Malformed) {
                    return try LZ4.decompress(extent.data, size: size)
                } catch {
                    throw error.at("extent \(id)")
                }
            }
        }
        let offset = PageContent.position(slot) * TraceFormat.pageBytes
        guard offset + page.count <= bytes.count else { return false }
        return bytes.withUnsafeBytes { memcmp($0.baseAddress! + offset, page.baseAddress!, page.count) == 0 }
    }
}

/// Whether all bytes are zero. The page is 8-byte aligned or not.
private func isZero(_ page: UnsafeRawBufferPointer) -> Bool {
    page.loadUnaligned(as: UInt64.self) == 0
        && memcmp(page.baseAddress!, page.baseAddress! + 8, page.count - 8) == 0
}
