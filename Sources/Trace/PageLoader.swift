import Foundation
import GRDB
import VMCore

/// Loads the memory of a checkpoint.
///
/// Memory: 16 bytes for each page that isn't zero, a bit for each page number, an extent, and one page map of the chain
/// at a time.
struct PageLoader {
    let store: Store
    let pageLimit: UInt64
    let slotLimit: UInt64

    private struct Place {
        var slot: UInt64
        var page: UInt64
    }

    /// Calls `body` once for each page that a map of `chain`, a checkpoint and its ancestors, names: with its content
    /// in the first, nil where it is zero.
    ///
    /// Zero pages come first, the others in the order in which they are stored, so that each extent is read once.
    func load(_ chain: [CheckpointID], _ body: (UInt64, UnsafeRawBufferPointer?) throws -> Void) throws {
        var places: [Place] = []
        try resolve(chain) { page, slot in
            if let slot { places.append(Place(slot: slot.rawValue, page: page)) } else { try body(page, nil) }
        }
        places.sort { $0.slot < $1.slot }
        var open: (id: Int64, bytes: [UInt8]) = (0, [])
        for place in places {
            let id = PageContent.extent(place.slot)
            if id != open.id { open = (id, try store.read { db in try readExtent(id, db, store.packing) }) }
            let offset = PageContent.position(place.slot) * TraceFormat.pageBytes
            guard offset + TraceFormat.pageBytes <= open.bytes.count else {
                throw TraceError.corrupt(what: "it lacks the content of page \(place.page)", place: "extent \(id)")
            }
            try open.bytes.withUnsafeBytes { bytes in
                try body(place.page, UnsafeRawBufferPointer(rebasing: bytes[offset..<(offset + TraceFormat.pageBytes)]))
            }
        }
    }

    /// Calls `body` once for each page that a map of `chain` names: with its slot in the first, nil where it is zero.
    func resolve(_ chain: [CheckpointID], _ body: (UInt64, PageSlot?) throws -> Void) throws {
        var seen = PageSet()
        for id in chain {
            for run in try map(id).runs {
                try seen.insertMissing(run.page, run.count) { page in
                    switch run.content {
                    case .zero: try body(page, nil)
                    case .slot(let first): try body(page, PageSlot(rawValue: first + (page - run.page)))
                    }
                }
            }
        }
    }

    private func map(_ id: CheckpointID) throws(TraceError) -> PageMap {
        let blobs = try store.read { db in try CheckpointRow.blobs(id, db) }
        do throws(Malformed) {
            // No map needs more: a run is a page or more, and takes three numbers.
            let limit = Int(min(UInt64(TraceFormat.Limit.state), 16 + 20 * pageLimit))
            let bytes = try Box.open(blobs.pages, limit: limit, dictionary: store.packing.dictionary)
            return try PageMap(bytes, pageLimit: pageLimit, slotLimit: slotLimit)
        } catch {
            throw error.at("checkpoint \(id.rawValue)")
        }
    }
}

/// A set of page numbers: a bit each, up to the highest.
private struct PageSet {
    private var words: [UInt64] = []

    /// Inserts `count` pages from `first` on; calls `body` for those that weren't there.
    mutating func insertMissing(_ first: UInt64, _ count: UInt64, _ body: (UInt64) throws -> Void) rethrows {
        let last = Int(truncatingIfNeeded: (first + count - 1) / 64)
        if last >= words.count {
            words += repeatElement(0, count: max(last + 1 - words.count, min(words.count, 1 << 16)))
        }
        var page = first
        while page < first + count {
            let word = Int(truncatingIfNeeded: page / 64)
            // A full word is skipped at once, or a file of many large maps could keep us busy for hours.
            if words[word] == .max {
                page = (page | 63) + 1
                continue
            }
            let bit: UInt64 = 1 << (page % 64)
            if words[word] & bit == 0 {
                words[word] |= bit
                try body(page)
            }
            page += 1
        }
    }
}

/// Where a trace holds the content of a page. Equal slots of a trace hold equal content.
public struct PageSlot: Hashable, Comparable, Sendable {
    let rawValue: UInt64

    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

extension TraceReader {
    /// Calls `body` once for each page that a checkpoint, or one of its ancestors after `ancestor`, names: with the slot
    /// of the content that it has at the checkpoint, nil where it is zero. A page that isn't named is as it is at
    /// `ancestor`, or zero where that is nil.
    ///
    /// The trace is refused where it names a page from `pageLimit` on.
    public func pageSlots(
        of id: CheckpointID, since ancestor: CheckpointID? = nil, pageLimit: UInt64,
        _ body: (UInt64, PageSlot?) throws -> Void
    ) throws {
        let chain = try chain(id)
        let end = ancestor.flatMap { chain.firstIndex(of: $0) } ?? chain.count
        guard ancestor == nil || end < chain.count else { throw TraceError.invalid("a checkpoint isn't an ancestor") }
        try loader(pageLimit).resolve(Array(chain[..<end]), body)
    }
}

/// Reads pages by their slots, and keeps the extents that it read last.
public final class SlotReader {
    private let store: Store
    private var cache: ExtentCache

    /// `extents` is how many to keep, 64 KiB each.
    public init(_ reader: TraceReader, extents: Int) {
        store = reader.store
        cache = ExtentCache(capacity: extents)
    }

    /// Calls `body` with the 4096 bytes of `slot`.
    public func read<R>(_ slot: PageSlot, _ body: (UnsafeRawBufferPointer) throws -> R) throws -> R {
        let id = PageContent.extent(slot.rawValue)
        let store = store
        let bytes = try cache.bytes(id) { id throws(TraceError) in try store.read { db in try readExtent(id, db, store.packing) } }
        let offset = PageContent.position(slot.rawValue) * TraceFormat.pageBytes
        guard offset + TraceFormat.pageBytes <= bytes.count else {
            throw TraceError.corrupt(what: "it lacks the content of a page", place: "extent \(id)")
        }
        return try bytes.withUnsafeBytes {
            try body(UnsafeRawBufferPointer(rebasing: $0[offset..<(offset + TraceFormat.pageBytes)]))
        }
    }
}
