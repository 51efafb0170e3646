// The page map of a checkpoint: which pages differ from the parent's, and where their content is. Before zstd:
//
//   varint  runs
//   each:   pages between the run before and this one (varint);
//           pages of the run, doubled, plus 1 if they are zero (varint);
//           unless zero: the first page's slot (signed varint, difference from the slot after the run before)
//
// A slot is a place in an extent: extent id times 16 plus the position in it. Consecutive pages of a run have
// consecutive slots.

/// Where the content of a page is.
enum PageContent: Equatable, Sendable {
    case zero
    case slot(UInt64)

    static func extent(_ slot: UInt64) -> Int64 { Int64(slot / UInt64(TraceFormat.Limit.pagesPerExtent)) }
    static func position(_ slot: UInt64) -> Int { Int(slot % UInt64(TraceFormat.Limit.pagesPerExtent)) }
}

/// Consecutive pages with consecutive content.
struct PageRun: Equatable, Sendable {
    var page: UInt64
    var count: UInt64
    /// Of the first page.
    var content: PageContent
}

/// Runs in ascending order of pages, without overlap.
struct PageMap: Equatable, Sendable {
    private(set) var runs: [PageRun] = []

    init() {}

    /// Adds a page after all others.
    mutating func append(page: UInt64, _ content: PageContent) {
        if let last = runs.last, last.page + last.count == page {
            switch (last.content, content) {
            case (.zero, .zero):
                runs[runs.count - 1].count += 1
                return
            case (.slot(let first), .slot(let next)) where first + last.count == next:
                runs[runs.count - 1].count += 1
                return
            default: break
            }
        }
        runs.append(PageRun(page: page, count: 1, content: content))
    }

    func encoded() -> [UInt8] {
        var sink = ByteSink()
        sink.varint(UInt64(runs.count))
        var page: UInt64 = 0
        var slot: UInt64 = 0
        for run in runs {
            sink.varint(run.page - page)
            page = run.page + run.count
            switch run.content {
            case .zero:
                sink.varint(run.count << 1 | 1)
            case .slot(let first):
                sink.varint(run.count << 1)
                sink.signed(Int64(bitPattern: first &- slot))
                slot = first + run.count
            }
        }
        return sink.bytes
    }

    /// Decodes a map whose pages are below `pageLimit` and whose slots are below `slotLimit`, each at most 2^60.
    init(_ bytes: [UInt8], pageLimit: UInt64, slotLimit: UInt64) throws(Malformed) {
        var source = ByteSource(bytes)
        let runLimit = Int(truncatingIfNeeded: min(pageLimit, UInt64(bytes.count)))
        let count = try source.count(atMost: runLimit, each: 2, of: "runs of pages")
        runs.reserveCapacity(count)
        var page: UInt64 = 0
        var slot: UInt64 = 0
        for _ in 0..<count {
            let gap = try source.varint()
            let length = try source.varint()
            let pages = length >> 1
            guard pages > 0, gap <= pageLimit, pages <= pageLimit, page + gap + pages <= pageLimit else {
                throw Malformed("its page map goes beyond page \(pageLimit)")
            }
            page += gap
            if length & 1 == 1 {
                runs.append(PageRun(page: page, count: pages, content: .zero))
            } else {
                slot &+= UInt64(bitPattern: try source.signed())
                guard slot >= UInt64(TraceFormat.Limit.pagesPerExtent), slot < slotLimit, pages <= slotLimit - slot
                else { throw Malformed("its page map names extent \(slot / 16), which the trace hasn't") }
                runs.append(PageRun(page: page, count: pages, content: .slot(slot)))
                slot += pages
            }
            page += pages
        }
        guard source.remaining == 0 else { throw Malformed("its page map is longer than its runs") }
    }
}

/// The slot of each page of a memory: 8 bytes a page, in leaves of 512 pages, so that holes cost nothing.
struct PageTable {
    /// Slots by page number; 0, which is no slot, for a page of zeros.
    private var leaves: [UInt64: [UInt64]] = [:]

    init() {}

    /// Sets the slot of `page`, 0 for zeros; returns the one before.
    mutating func set(_ page: UInt64, _ slot: UInt64) -> UInt64 {
        if slot == 0, leaves[page / 512] == nil { return 0 }
        var before = slot
        swap(&leaves[page / 512, default: Array(repeating: 0, count: 512)][Int(page % 512)], &before)
        return before
    }

    /// The slot of `page`, 0 for zeros.
    subscript(page: UInt64) -> UInt64 { leaves[page / 512]?[Int(page % 512)] ?? 0 }

    /// Calls `body` with each page that isn't zero and its slot, in ascending order of pages.
    func forEach(_ body: (UInt64, UInt64) -> Void) {
        for key in leaves.keys.sorted() {
            for (place, slot) in leaves[key]!.enumerated() where slot != 0 { body(key * 512 + UInt64(place), slot) }
        }
    }

    /// All pages that aren't zero.
    func map() -> PageMap {
        var map = PageMap()
        forEach { map.append(page: $0, .slot($1)) }
        return map
    }
}
