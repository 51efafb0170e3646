import Dispatch
import Foundation
import GRDB
import VMCore

/// How a trace's pages and states are compressed.
struct Packing: Sendable {
    /// Whether the trace is packed.
    var isPacked = false
    var dictionary: ZstdDictionary?
}

/// Writes a trace again in as few bytes as it gets: a packed trace, which reads like any other.
///
/// Chunks and states are compressed at zstd's level 19. Pages are stored in the order of their numbers and then of time,
/// so that the versions of a page lie in one extent and cost little more than what differs between them.
public struct TracePacker {
    /// Which checkpoints the packed trace keeps. The first is always among them.
    public enum Checkpoints: Equatable, Sendable {
        case all
        /// As many, evenly spread.
        case atMost(Int)
    }

    public var checkpoints = Checkpoints.all
    private let reader: TraceReader
    private let slots: SlotReader
    private let pageLimit: UInt64

    private static let level: Int32 = 19
    /// What zstd's own tool takes for a dictionary. It pays where a trace has some megabytes of pages.
    private static let dictionaryBytes = 110 << 10
    /// Bytes of samples to train it with: a hundred times its size, as zstd advises.
    private static let sampleBytes = 11 << 20
    /// Extents compressed side by side.
    private static let batch = 64

    public init(_ reader: TraceReader) throws(TraceError) {
        self.reader = reader
        pageLimit = try reader.description().memory.regions.map { $0.end.rawValue / UInt64(pageSize) }.max() ?? 0
        slots = SlotReader(reader, extents: 1024)
    }

    /// Writes the packed trace to `path`; `progress` is told how much is done, 0 to 1.
    public func write(
        to path: String, overwrite: Bool = false, progress: (Double) -> Void = { _ in }
    ) throws(TraceError) {
        let kept = try keptCheckpoints()
        let layout = try layout(kept)
        let dictionary = try dictionary(kept, layout)
        let store = try Store.create(
            path: path, overwrite: overwrite, version: TraceFormat.packedVersion
        ) { _, db in
            try copyMeta(to: db)
            if let dictionary { try MetaRow.insertDictionary(dictionary, db) }
            try writeExtents(layout, dictionary ?? [], to: db) { progress(0.8 * $0) }
            try writeCheckpoints(kept, layout, dictionary ?? [], to: db)
            try writeChunks(to: db) { progress(0.8 + 0.2 * $0) }
            try NoteRow.copy(try reader.notes(), to: db)
        }
        _ = try? store.read { db in try db.execute(sql: "PRAGMA journal_mode = DELETE") }
        store.close()
    }

    // MARK: Pages

    private func keptCheckpoints() throws(TraceError) -> [CheckpointInfo] {
        let all = reader.checkpoints
        guard case .atMost(let count) = checkpoints, count < all.count, let first = all.first else { return all }
        let others = max(1, count) - 1
        return [first] + (0..<others).map { all[(($0 + 1) * all.count / (others + 1))] }
    }

    /// A content and where it stands in the packed trace: at the same place in `layout` as in the extents.
    private struct Content {
        var page: UInt64
        var slot: PageSlot
    }

    /// All contents in the order in which they are stored.
    private func layout(_ kept: [CheckpointInfo]) throws(TraceError) -> [Content] {
        var contents: [(page: UInt64, order: Int, slot: PageSlot)] = []
        var seen: Set<PageSlot> = []
        try forEachChange(kept) { order, changes in
            for (page, slot) in changes {
                if let slot, seen.insert(slot).inserted { contents.append((page, order, slot)) }
            }
        }
        contents.sort { ($0.page, $0.order) < ($1.page, $1.order) }
        return contents.map { Content(page: $0.page, slot: $0.slot) }
    }

    /// Calls `body` for each checkpoint with the pages that differ from the one before it, in ascending order.
    private func forEachChange(
        _ kept: [CheckpointInfo], _ body: (Int, [(page: UInt64, slot: PageSlot?)]) throws -> Void
    ) throws(TraceError) {
        var table = PageTable()
        for (order, info) in kept.enumerated() {
            var changes: [(page: UInt64, slot: PageSlot?)] = []
            do {
                let chain = try reader.chain(info.id)
                let parent = order > 0 && chain.contains(kept[order - 1].id) ? kept[order - 1].id : nil
                var next = parent == nil ? PageTable() : table
                try reader.pageSlots(of: info.id, since: parent, pageLimit: pageLimit) { page, slot in
                    let place = slot?.rawValue ?? 0
                    _ = next.set(page, place)
                    if table[page] != place, parent != nil || place != 0 { changes.append((page, slot)) }
                }
                // What a complete checkpoint doesn't name is zero.
                if parent == nil { table.forEach { page, _ in if next[page] == 0 { changes.append((page, nil)) } } }
                changes.sort { $0.page < $1.page }
                table = next
                try body(order, changes)
            } catch let error as TraceError {
                throw error
            } catch {
                throw .invalid("\(error)")
            }
        }
    }

    private static let perExtent = TraceFormat.Limit.pagesPerExtent

    /// The pages of extent `index`, from 0.
    private func extent(_ index: Int, of layout: [Content]) throws -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(Self.perExtent * TraceFormat.pageBytes)
        for content in layout[(index * Self.perExtent)..<min(layout.count, (index + 1) * Self.perExtent)] {
            try slots.read(content.slot) { bytes += $0 }
        }
        return bytes
    }

    private func writeExtents(
        _ layout: [Content], _ dictionary: [UInt8], to db: Database, _ progress: (Double) -> Void
    ) throws {
        let count = (layout.count + Self.perExtent - 1) / Self.perExtent
        // A compressor for each place of a batch: loading the dictionary takes longer than an extent.
        let compressors = try (0..<min(count, Self.batch)).map { _ in
            try ZstdCompressor(level: Self.level, dictionary: dictionary)
        }
        for start in stride(from: 0, to: count, by: Self.batch) {
            let contents = try (start..<min(count, start + Self.batch)).map { try extent($0, of: layout) }
            for (i, frame) in Self.compress(contents, compressors).enumerated() {
                try NewExtent(id: Int64(start + i + 1), content: contents[i], compressed: frame).insert(into: db)
            }
            progress(Double(start) / Double(count))
        }
    }

    private static func compress(_ contents: [[UInt8]], _ compressors: [ZstdCompressor]) -> [[UInt8]?] {
        let frames = UnsafeMutableBufferPointer<[UInt8]?>.allocate(capacity: contents.count)
        frames.initialize(repeating: nil)
        defer {
            frames.deinitialize()
            frames.deallocate()
        }
        // Each iteration has a place and a compressor of its own.
        nonisolated(unsafe) let (places, tools) = (frames, compressors)
        DispatchQueue.concurrentPerform(iterations: contents.count) { i in
            places[i] = try? tools[i].compress(contents[i])
        }
        return Array(frames)
    }

    // MARK: The dictionary

    /// A dictionary for pages and states; nil where it would cost more than it saves.
    private func dictionary(_ kept: [CheckpointInfo], _ layout: [Content]) throws(TraceError) -> [UInt8]? {
        do {
            var content: [UInt8] = []
            var samples: [Int] = []
            func add(_ bytes: some Collection<UInt8>) {
                content += bytes
                samples.append(bytes.count)
            }
            let states = kept.count > 64 ? stride(from: 0, to: kept.count, by: kept.count / 64).map { kept[$0] } : kept
            for info in states {
                let state = try reader.state(of: info.id)
                if state.devices.count < 64 << 10 { add(state.devices) }
                add(state.cpu)
            }
            let pages = Self.sampleBytes / TraceFormat.pageBytes
            for i in stride(from: 0, to: layout.count, by: max(1, layout.count / pages)) {
                try slots.read(layout[i].slot) { add($0) }
            }
            guard let dictionary = ZstdDictionary.train(content, samples: samples, limit: Self.dictionaryBytes) else {
                return nil
            }
            let saved = try saving(dictionary, layout, states) * Double(max(1, layout.count))
            return saved > Double(dictionary.count) ? dictionary : nil
        } catch let error as TraceError {
            throw error
        } catch {
            throw .invalid("\(error)")
        }
    }

    /// What a dictionary saves for each page, by 32 extents and the states that go with them.
    private func saving(_ dictionary: [UInt8], _ layout: [Content], _ states: [CheckpointInfo]) throws -> Double {
        let plain = try ZstdCompressor(level: Self.level)
        let trained = try ZstdCompressor(level: Self.level, dictionary: dictionary)
        let count = (layout.count + Self.perExtent - 1) / Self.perExtent
        var (saved, pages) = (0, 0)
        for index in stride(from: 0, to: count, by: max(1, count / 32)) {
            let bytes = try extent(index, of: layout)
            pages += bytes.count / TraceFormat.pageBytes
            saved += try plain.compress(bytes).count - trained.compress(bytes).count
        }
        return pages > 0 ? Double(saved) / Double(pages) : 0
    }

    // MARK: Rows

    private func writeCheckpoints(
        _ kept: [CheckpointInfo], _ layout: [Content], _ dictionary: [UInt8], to db: Database
    ) throws {
        let places = Dictionary(uniqueKeysWithValues: layout.enumerated().map { ($1.slot, UInt64($0 + Self.perExtent)) })
        let zstd = try ZstdCompressor(level: Self.level, dictionary: dictionary)
        let firstEvent = reader.chunks.first?.firstEvent ?? 0
        var table = PageTable()
        var depth = 0
        try forEachChange(kept) { order, changes in
            let info = kept[order]
            var map = PageMap()
            for (page, slot) in changes {
                let place = slot.flatMap { places[$0] } ?? 0
                _ = table.set(page, place)
                map.append(page: page, place == 0 ? .zero : .slot(place))
            }
            depth += 1
            let isComplete = order == 0 || depth > CheckpointWriter.chain
            if isComplete { (map, depth) = (table.map(), 1) }
            let state = try reader.state(of: info.id)
            let cpu = try Box.close([UInt8](state.cpu), zstd)
            let devices = try Box.close([UInt8](state.devices), zstd)
            let pages = try Box.close(map.encoded(), zstd)
            let checkpoint = NewCheckpoint(
                exit: info.exit, position: info.position, parent: isComplete ? nil : CheckpointID(Int64(order)),
                cpu: Data(cpu), devices: Data(), digests: info.digests, wall: info.wall, guest: info.guest,
                pause: info.pause)
            try CheckpointRow(
                id: Int64(order + 1), event: info.event - min(info.event, firstEvent), checkpoint: checkpoint,
                devices: devices, pages: pages, pagesDirtied: info.pagesDirtied,
                bytesStored: cpu.count + devices.count + pages.count
            ).insert(into: db)
        }
    }

    private func copyMeta(to db: Database) throws {
        try MetaRow(format: TraceFormat.Key.start, value: TraceStart(exit: reader.firstExit.rawValue, event: 0)).upsert(db)
        for (key, json) in reader.metadata where key != TraceFormat.Key.start {
            try MetaRow(key: key, json: json).upsert(db)
        }
    }

    /// Writes the events in chunks as long as they may be.
    private func writeChunks(to db: Database, _ progress: (Double) -> Void) throws {
        let buffer = EventBuffer()
        var encoder = try ChunkEncoder(level: Self.level)
        var cursor = reader.cursor()
        var head = EventHead(buffer, events: 0, exits: reader.firstExit.rawValue)
        var first = (event: UInt64(0), exit: reader.firstExit.rawValue)
        func close() throws {
            guard head.count > 0 else { return }
            let chunk = try encoder.encode(
                UnsafeBufferPointer(start: buffer.records, count: head.count), payload: buffer.payload,
                anchors: buffer.anchors)
            try ChunkRow(firstEvent: first.event, firstExit: first.exit, chunk: chunk).upsert(db)
            first = (head.events, head.exits)
            head.turn(to: buffer)
            progress(Double(head.events) / Double(max(1, reader.events)))
        }
        while let event = try cursor.next() {
            let payload = event.payload?.count ?? 0
            if head.count == TraceFormat.Limit.chunkEvents || head.anchorCount == TraceFormat.Limit.chunkAnchors
                || (head.count > 0 && head.payloadCount + payload > TraceFormat.Limit.chunkPayload) {
                try close()
                buffer.published.pointee.store(0, ordering: .relaxed)
            }
            if head.count == 0 { buffer.makeRoom(payload: payload) }
            head.push(event, into: buffer)
        }
        try close()
    }
}

extension EventHead {
    /// Appends an event of another trace where there is room.
    fileprivate mutating func push(_ event: TraceEvent, into buffer: EventBuffer) {
        if let anchor = event.anchor {
            buffer.anchors[anchorCount] = anchor
            anchorCount += 1
            push(EventRecord(event.identity, EventForm(anchor), value: anchor.general))
        } else if let payload = event.payload {
            payload.withUnsafeBytes {
                if let source = $0.baseAddress {
                    (buffer.payload + payloadCount).copyMemory(from: source, byteCount: $0.count)
                }
            }
            payloadCount += payload.count
            push(EventRecord(event.identity, .payload, value: UInt64(payload.count)))
        } else {
            push(EventRecord(event.identity, .plain, value: event.value))
        }
    }
}

extension NoteRow {
    fileprivate static func copy(_ notes: [TraceNote], to db: Database) throws {
        for note in notes { try NoteRow(exit: note.exit, kind: note.kind, text: note.text).insert(db) }
    }
}
