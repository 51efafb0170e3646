import Foundation
import GRDB

// An extent: up to 16 pages, one after the other. Its data is an LZ4 block, or the pages as they are where LZ4 wouldn't
// be shorter; the length tells which. In a packed trace it is a zstd frame instead of an LZ4 block. The writer (`PagePacker`) and the reader (`ExtentCache`) of it follow.

/// An extent on its way to the table.
struct NewExtent {
    var id: Int64
    var pages: Int
    var digest: ContentDigest
    var data: [UInt8]

    init(id: Int64, content: [UInt8]) { self.init(id: id, content: content, compressed: LZ4.compress(content)) }

    /// `compressed` may be nil, or longer than the content.
    init(id: Int64, content: [UInt8], compressed: [UInt8]?) {
        self.id = id
        pages = content.count / TraceFormat.pageBytes
        digest = ContentDigest(content)
        data = compressed.flatMap { $0.count < content.count ? $0 : nil } ?? content
    }

    /// The pages again.
    func content() throws(TraceError) -> [UInt8] {
        let size = pages * TraceFormat.pageBytes
        if data.count == size { return data }
        do throws(Malformed) {
            return try LZ4.decompress(data, size: size)
        } catch {
            throw error.at("extent \(id)")
        }
    }

    func insert(into db: Database) throws {
        try db.cachedStatement(sql: "INSERT INTO extent(id, pages, digest, data) VALUES (?, ?, ?, ?)")
            .execute(arguments: [id, pages, Data(digest.canonical), Data(data)])
    }
}

/// Reads an extent's pages and checks them.
func readExtent(_ id: Int64, _ db: Database, _ packing: Packing = Packing()) throws -> [UInt8] {
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
        } else if packing.isPacked {
            try ZstdDecompressor().decompress(Array(data), size: size, dictionary: packing.dictionary)
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

/// The content of a few extents, the oldest forgotten.
struct ExtentCache {
    private var content: [Int64: [UInt8]] = [:]
    /// Ids in the order in which they came, in a ring; 0, which is no id, where none is.
    private var order: [Int64]
    private var next = 0

    /// `capacity` is how many extents to keep.
    init(capacity: Int) { order = Array(repeating: 0, count: capacity) }

    mutating func insert(_ id: Int64, _ bytes: [UInt8]) {
        content[order[next]] = nil
        content[id] = bytes
        order[next] = id
        next = (next + 1) % order.count
    }

    mutating func remove(_ ids: Set<Int64>) {
        for id in order where ids.contains(id) { content[id] = nil }
    }

    mutating func bytes(_ id: Int64, else load: (Int64) throws(TraceError) -> [UInt8]) throws(TraceError) -> [UInt8] {
        if let found = content[id] { return found }
        let loaded = try load(id)
        insert(id, loaded)
        return loaded
    }
}

/// How pages that were stored are reached: through the file, or within the transaction that creates it.
struct ExtentFile {
    let read: (Int64) throws(TraceError) -> [UInt8]
    let write: ([NewExtent]) throws(TraceError) -> Void

    init(_ store: Store) {
        read = { id throws(TraceError) in try store.read { db in try readExtent(id, db) } }
        write = { extents throws(TraceError) in
            try store.write { db in for extent in extents { try extent.insert(into: db) } }
        }
    }

    init(_ store: Store, within db: Database) {
        read = { id throws(TraceError) in try store.translating(db) { try readExtent(id, db) } }
        write = { extents throws(TraceError) in
            try store.translating(db) { for extent in extents { try extent.insert(into: db) } }
        }
    }
}

/// Where contents are that were stored: the latest 64 Ki to 128 Ki of them. One that was forgotten is stored again. Half a
/// digest finds them, for what is found is compared: an entry of 16 bytes instead of 24 keeps a recorder 3 MiB smaller.
private struct ContentIndex {
    private static let generation = 1 << 16
    private var young: [UInt64: UInt64] = [:]
    private var old: [UInt64: UInt64] = [:]

    mutating func slot(of digest: ContentDigest) -> UInt64? {
        if let slot = young[digest.low] { return slot }
        guard let slot = old[digest.low] else { return nil }
        insert(slot, of: digest)
        return slot
    }

    mutating func insert(_ slot: UInt64, of digest: ContentDigest) {
        if young.count >= Self.generation {
            old = young
            young = [:]
        }
        young[digest.low] = slot
    }

    mutating func forget(_ extents: Set<Int64>) {
        young = young.filter { !extents.contains(PageContent.extent($0.value)) }
        old = old.filter { !extents.contains(PageContent.extent($0.value)) }
    }
}

/// Turns pages into extents, each different content once. Knows no file: it is given a way to read an extent back.
///
/// Memory: at most 5 MiB for the index, and 2 MiB of extents.
struct PagePacker {
    private static let cacheBytes = 2 << 20
    private let extentBytes: Int
    private var index = ContentIndex()
    private var cache: ExtentCache
    private var open: [UInt8] = []
    private var nextID: Int64 = 1
    /// Closed extents that aren't in the file yet.
    private var pending: [NewExtent] = []
    /// The memory that they take.
    private(set) var pendingBytes = 0

    init(pagesPerExtent: Int) {
        extentBytes = pagesPerExtent * TraceFormat.pageBytes
        cache = ExtentCache(capacity: Self.cacheBytes / extentBytes)
    }

    /// The slot of `page`'s content, or zero. A slot with the same digest is compared byte by byte; pages whose
    /// digests agree by accident are stored apart.
    mutating func pack(_ page: UnsafeRawBufferPointer, _ file: ExtentFile) throws(TraceError) -> PageContent {
        if isZero(page) { return .zero }
        let digest = ContentDigest(page)
        if let slot = index.slot(of: digest), try content(of: slot, equals: page, file) { return .slot(slot) }
        let position = open.count / TraceFormat.pageBytes
        let slot = UInt64(nextID) * UInt64(TraceFormat.Limit.pagesPerExtent) + UInt64(position)
        index.insert(slot, of: digest)
        open += page
        if open.count == extentBytes { close() }
        return .slot(slot)
    }

    /// The full extents that must go to the file now.
    mutating func takeClosed() -> [NewExtent] {
        defer { (pending, pendingBytes) = ([], 0) }
        return pending
    }

    /// The same, with the one that is being filled.
    mutating func takeAll() -> [NewExtent] {
        if !open.isEmpty { close() }
        return takeClosed()
    }

    /// Uses no content of these extents any more: they go.
    mutating func forget(_ extents: Set<Int64>) {
        index.forget(extents)
        cache.remove(extents)
    }

    private mutating func close() {
        let extent = NewExtent(id: nextID, content: open)
        pendingBytes += extent.data.count + MemoryLayout<NewExtent>.stride
        pending.append(extent)
        cache.insert(nextID, open)
        nextID += 1
        open = []
        open.reserveCapacity(extentBytes)
    }

    private mutating func content(
        of slot: UInt64, equals page: UnsafeRawBufferPointer, _ file: ExtentFile
    ) throws(TraceError) -> Bool {
        let id = PageContent.extent(slot)
        let bytes: [UInt8]
        if id == nextID {
            bytes = open
        } else {
            let pending = pending
            bytes = try cache.bytes(id) { id throws(TraceError) in
                guard let first = pending.first?.id, id >= first else { return try file.read(id) }
                return try pending[Int(id - first)].content()
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
