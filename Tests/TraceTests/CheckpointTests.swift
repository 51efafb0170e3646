import Foundation
import Testing
import VMCore

@testable import Trace

/// Guest memory as a test keeps it: only pages that aren't zero.
private typealias Memory = [UInt64: [UInt8]]

@Suite struct CheckpointTests {
    let folder = Folder()

    private static let zero = [UInt8](repeating: 0, count: 4096)

    private func write(
        _ writer: TraceWriter, _ checkpoint: NewCheckpoint, dirty: Set<UInt64>, _ memory: Memory
    ) throws -> CheckpointID {
        try writer.writeCheckpoint(checkpoint) { emit in
            for page in dirty.sorted() {
                try (memory[page] ?? Self.zero).withUnsafeBytes { try emit(page, $0.baseAddress!) }
            }
        }
    }

    private func load(_ reader: TraceReader, _ id: CheckpointID, limit: UInt64 = 1 << 20) throws -> Memory {
        var memory: Memory = [:]
        var named: Set<UInt64> = []
        try reader.loadPages(id, pageLimit: limit) { page, bytes in
            if !named.insert(page).inserted { Issue.record("page \(page) twice") }
            if let bytes { memory[page] = Array(bytes) }
        }
        return memory
    }

    private func newPage(_ random: inout Seeded, _ known: [[UInt8]]) -> [UInt8]? {
        switch random.below(4) {
        case 0: nil
        case 1: known.isEmpty ? nil : known[random.below(known.count)]
        case 2: [UInt8](repeating: UInt8(1 + random.below(255)), count: 4096)
        default: random.bytes(4096)
        }
    }

    @Test(arguments: [UInt64(1), 2, 3]) func chainsAndTreesOfCheckpointsGiveBackTheirMemory(seed: UInt64) throws {
        var random = Seeded(seed)
        let writer = try TraceWriter(path: folder("a.vmrr"))
        var states: [(id: CheckpointID, memory: Memory, cpu: Data, devices: Data)] = []
        var known: [[UInt8]] = []
        for number in 0..<40 {
            try writer.append(EventIdentity(kind: .halt), value: 0)
            // Mostly the next in the chain; at times a complete one, or a branch from long ago.
            let choice = random.below(10)
            let old = choice == 1 && !states.isEmpty ? states[random.below(states.count)] : states.last
            let parent = choice == 0 ? nil : old
            var memory = parent?.memory ?? [:]
            var dirty: Set<UInt64> = []
            for _ in 0..<(1 + random.below(60)) {
                let page = UInt64(random.below(200)) * (random.below(50) == 0 ? 4000 : 1)
                memory[page] = newPage(&random, known)
                if let new = memory[page] { known.append(new) }
                dirty.insert(page)
            }
            let cpu = Data(random.bytes(50))
            let devices = Data(repeating: UInt8(number), count: random.below(3000))
            let checkpoint = NewCheckpoint(
                exit: writer.exits, position: number % 2 == 0 ? Data([1, 2]) : nil, parent: parent?.id, cpu: cpu,
                devices: devices, digests: .init(state: "ab\(number)", strictMemory: "cd"),
                wall: Nanoseconds(UInt64(number)), guest: .max, pause: Nanoseconds(9))
            let id = try write(writer, checkpoint, dirty: dirty, memory)
            states.append((id, memory, cpu, devices))
        }
        try writer.finish()

        let reader = try TraceReader(path: folder("a.vmrr"))
        #expect(reader.checkpoints.count == 40)
        for (number, state) in states.enumerated() {
            #expect(try load(reader, state.id) == state.memory, "seed \(seed), checkpoint \(state.id)")
            #expect(try reader.state(of: state.id) == CheckpointState(cpu: state.cpu, devices: state.devices))
            let info = reader.checkpoints[number]
            #expect(info.exit == ExitNumber(UInt64(number + 1)) && info.event == UInt64(number + 1))
            #expect(info.digests == CheckpointDigests(state: "ab\(number)", strictMemory: "cd"))
            #expect(info.guest == .max && info.position == (number % 2 == 0 ? Data([1, 2]) : nil))
        }
        #expect(reader.checkpoint(atOrBefore: ExitNumber(7))?.id == CheckpointID(7))
        #expect(reader.checkpoint(atOrBefore: .start) == nil)
    }

    @Test func aPageIsStoredOnceAndZerosNever() throws {
        var random = Seeded(4)
        let page = random.bytes(4096)
        let writer = try TraceWriter(path: folder("a.vmrr"))
        let memory = Memory(uniqueKeysWithValues: (0..<1000).map { ($0 * 2, page) })
        let first = try write(
            writer, NewCheckpoint(exit: .start, cpu: Data(), devices: Data()), dirty: Set(0..<2000), memory)
        let second = try write(
            writer, NewCheckpoint(exit: .start, parent: first, cpu: Data(), devices: Data()), dirty: Set(0..<2000),
            memory)
        try writer.finish()
        let reader = try TraceReader(path: folder("a.vmrr"))
        #expect(try reader.extents().reduce(0) { $0 + $1.pages } == 1)
        #expect(try load(reader, second) == memory)
        #expect(reader.checkpoints[1].bytesStored < 20)
        #expect(reader.checkpoints[1].pagesDirtied == 2000)
        try reader.loadChangedPages(second, pageLimit: 2000) { _, _ in Issue.record("nothing has changed") }
    }

    @Test func theCallersPageLimitHolds() throws {
        let writer = try TraceWriter(path: folder("a.vmrr"))
        let id = try write(
            writer, NewCheckpoint(exit: .start, cpu: Data(), devices: Data()), dirty: [99], [99: Seeded(1).bytes1()])
        try writer.finish()
        let reader = try TraceReader(path: folder("a.vmrr"))
        #expect(try load(reader, id, limit: 100).count == 1)
        #expect(throws: TraceError.self) { try load(reader, id, limit: 99) }
    }

    @Test func badCheckpointsAreRefusedAndTheRecordingGoesOn() throws {
        let writer = try TraceWriter(path: folder("a.vmrr"))
        func attempt(_ parent: Int64?, exit: UInt64 = 0, pages: [UInt64] = []) throws {
            let checkpoint = NewCheckpoint(
                exit: ExitNumber(exit), parent: parent.map { CheckpointID($0) }, cpu: Data(), devices: Data())
            try writer.writeCheckpoint(checkpoint) { emit in
                for page in pages { try Self.zero.withUnsafeBytes { try emit(page, $0.baseAddress!) } }
            }
        }
        #expect(throws: TraceError.self) { try attempt(1) }
        #expect(throws: TraceError.self) { try attempt(nil, exit: 5) }
        for _ in 0..<5 { try writer.append(EventIdentity(kind: .halt), value: 0) }
        try attempt(nil, exit: 5)
        #expect(throws: TraceError.self) { try attempt(1, exit: 4) }
        #expect(throws: TraceError.self) { try attempt(nil, pages: [2, 1]) }
        #expect(throws: TraceError.self) { try attempt(nil, pages: [1 << 32]) }
        try attempt(1, exit: 5)
        try writer.finish()
        #expect(try readEverything(folder("a.vmrr")) == nil)
    }
}

extension Nanoseconds { fileprivate static let max = Nanoseconds(.max) }

extension Seeded {
    fileprivate func bytes1() -> [UInt8] {
        var copy = self
        return copy.bytes(4096)
    }
}
