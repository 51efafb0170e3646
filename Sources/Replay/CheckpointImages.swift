import Foundation
import Trace
import VMCore

/// The memory of a trace's checkpoints as images that share what doesn't differ. The content stays in the trace.
struct CheckpointImages {
    /// Images to keep: each knows its way to its neighbours, so that a few serve all checkpoints.
    private static let limit = 32

    private let reader: TraceReader
    private let memory: GuestMemory
    private let pageLimit: UInt64
    private let parents: [CheckpointID: CheckpointID?]
    private var images: [CheckpointID: (image: MemoryImage, used: Int)] = [:]
    private var clock = 0

    init(reader: TraceReader, memory: GuestMemory) {
        self.reader = reader
        self.memory = memory
        pageLimit = memory.map.regions.map { $0.end.rawValue / UInt64(pageSize) }.max() ?? 0
        parents = Dictionary(reader.checkpoints.map { ($0.id, $0.parent) }) { first, _ in first }
    }

    mutating func image(of id: CheckpointID) throws -> MemoryImage {
        clock += 1
        var ancestor: CheckpointID? = id
        while let next = ancestor, images[next] == nil { ancestor = parents[next] ?? nil }
        var image = ancestor.flatMap { images[$0]?.image } ?? MemoryImage(pages: memory.filePages)
        if let ancestor { images[ancestor]?.used = clock }
        if ancestor != id {
            try reader.pageSlots(of: id, since: ancestor, pageLimit: pageLimit) { number, slot in
                guard let page = memory.filePage(ofGuestPage: number) else {
                    throw TraceError.corrupt(what: "page 0x\(String(number, radix: 16)) lies in a hole of memory",
                                             place: "checkpoint \(id.rawValue)")
                }
                image[page] = slot.map { .stored($0) } ?? .zero
            }
            if images.count >= Self.limit, let oldest = images.min(by: { $0.value.used < $1.value.used }) {
                images[oldest.key] = nil
            }
            images[id] = (image, clock)
        }
        return image
    }
}
