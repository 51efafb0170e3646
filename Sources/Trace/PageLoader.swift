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
        var seen = PageSet()
        var places: [Place] = []
        for id in chain {
            for run in try map(id).runs {
                try seen.insertMissing(run.page, run.count) { page in
                    switch run.content {
                    case .zero: try body(page, nil)
                    case .slot(let first): places.append(Place(slot: first + (page - run.page), page: page))
                    }
                }
            }
        }
        places.sort { $0.slot < $1.slot }
        var open: (id: Int64, bytes: [UInt8]) = (0, [])
        for place in places {
            let id = PageContent.extent(place.slot)
            if id != open.id { open = (id, try store.read { db in try readExtent(id, db) }) }
            let offset = PageContent.position(place.slot) * TraceFormat.pageBytes
            guard offset + TraceFormat.pageBytes <= open.bytes.count else {
                throw TraceError.corrupt(what: "it lacks the content of page \(place.page)", place: "extent \(id)")
            }
            try open.bytes.withUnsafeBytes { bytes in
                try body(place.page, UnsafeRawBufferPointer(rebasing: bytes[offset..<(offset + TraceFormat.pageBytes)]))
            }
        }
    }

    private func map(_ id: CheckpointID) throws(TraceError) -> PageMap {
        let blobs = try store.read { db in try CheckpointRow.blobs(id, db) }
        do throws(Malformed) {
            // No map needs more: a run is a page or more, and takes three numbers.
            let limit = Int(min(UInt64(TraceFormat.Limit.state), 16 + 20 * pageLimit))
            return try PageMap(try Box.open(blobs.pages, limit: limit), pageLimit: pageLimit, slotLimit: slotLimit)
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
