import Foundation
import Testing
import VMCore

@Suite struct MemoryTests {
    private func memory(_ bytes: UInt64 = 8 << 20) throws -> GuestMemory {
        try GuestMemory(map: MemoryLayoutMap(pcWithBytes: bytes))
    }

    @Test func holesAreNoMemory() throws {
        let memory = try memory()
        #expect(memory.write([1, 2, 3], at: .init(0x9FFFD)))
        #expect(!memory.write([1, 2, 3, 4], at: .init(0x9FFFD)))
        #expect(!memory.write([1], at: .init(0xA0000)))
        #expect(!memory.write([1], at: .init(0xBFFFF)))
        #expect(memory.write([1], at: .init(0xC0000)))
        #expect(memory.write([1], at: .init((8 << 20) - 1)))
        #expect(!memory.write([1, 1], at: .init((8 << 20) - 1)))
        #expect(!memory.write([1], at: .init(.max)))
        #expect(memory.read(.init(0x9FFFD), count: 3) == [1, 2, 3])
        #expect(memory.load(.init(0x9FFFE), as: UInt32.self) == nil)
        #expect(memory.load(.init(0x9FFFE), as: UInt16.self) == 0x0302)
    }

    @Test func memoryAboveThreeGiBContinuesAtFour() throws {
        let map = MemoryLayoutMap(pcWithBytes: 5 << 30)
        #expect(map.isValid)
        #expect(map.regions.last?.address == .init(4 << 30))
        #expect(map.regions.last?.bytes == 2 << 30)
        #expect(map.fileBytes == 5 << 30)
    }

    @Test func impossibleMapsAreRefused() {
        typealias Region = MemoryLayoutMap.Region
        let good = Region(address: .init(0), bytes: 4096, fileOffset: 0)
        #expect(MemoryLayoutMap(regions: [good]).isValid)
        for bad in [
            [], [Region(address: .init(1), bytes: 4096, fileOffset: 0)], [Region(address: .init(0), bytes: 0, fileOffset: 0)],
            [good, good], [Region(address: .init(0), bytes: 1 << 62, fileOffset: 0)],
            [Region(address: .init(.max - 4095), bytes: 4096, fileOffset: 0)],
            [Region(address: .init(0), bytes: 4096, fileOffset: .max - 4095)],
            [good, Region(address: .init(8192), bytes: 4096, fileOffset: 0)],
            Array(repeating: good, count: 9),
        ] as [[Region]] {
            #expect(!MemoryLayoutMap(regions: bad).isValid)
        }
    }

    @Test func digestFollowsContentNotHistory() throws {
        let one = try memory(), two = try memory()
        let followed = MemoryDigest(memory: one)
        var random = SeededGenerator(seed: 7)
        for _ in 0..<200 {
            let page = UInt64(random.next(below: 100)) + 0x100
            one.write([UInt8](repeating: UInt8(truncatingIfNeeded: random.next()), count: 64), at: .init(page << 12))
            followed.update(page: Int(page))
        }
        one.forEachTouchedPage { page in
            if let address = one.address(ofFilePage: page), let bytes = one.read(address, count: 4096) {
                two.write(bytes, at: address)
            }
        }
        #expect(followed.total == MemoryDigest.ofAll(one, kind: .masked))
        #expect(MemoryDigest.ofAll(one, kind: .masked) == MemoryDigest.ofAll(two, kind: .masked))
        #expect(MemoryDigest.ofAll(one, kind: .strict) == MemoryDigest.ofAll(two, kind: .strict))
        // Zeros that were written are as good as memory never touched.
        one.write([UInt8](repeating: 0, count: 4096), at: .init(0x500_000))
        #expect(MemoryDigest.ofAll(one, kind: .strict) == MemoryDigest.ofAll(two, kind: .strict))
    }

    @Test func equalPagesAtDifferentPlacesDiffer() throws {
        let one = try memory(), two = try memory()
        one.write([1], at: .init(0x100_000))
        two.write([1], at: .init(0x101_000))
        #expect(MemoryDigest.ofAll(one, kind: .strict) != MemoryDigest.ofAll(two, kind: .strict))
    }

    @Test func maskedDigestOverlooksAccessedAndDirtyBitsAlone() throws {
        let memory = try memory()
        func digests(_ entry: UInt64) -> (masked: Digest128, strict: Digest128) {
            memory.write(withUnsafeBytes(of: entry.littleEndian) { [UInt8]($0) }, at: .init(0x100_008))
            return (MemoryDigest.ofAll(memory, kind: .masked), MemoryDigest.ofAll(memory, kind: .strict))
        }
        let clean = digests(0x20_0003), accessed = digests(0x20_0063)
        #expect(clean.masked == accessed.masked)
        #expect(clean.strict != accessed.strict)
        #expect(digests(0x20_0002).masked != digests(0x20_0022).masked, "an entry that isn't present has no such bits")
        #expect(digests(0x20_0083).masked != clean.masked)
        // The upper half is a word of its own.
        #expect(digests(0x61_0020_0003).masked == digests(0x01_0020_0003).masked)
        #expect(digests(0x60_0020_0003).masked != digests(0x20_0003).masked)
    }

    /// Whoever is handed pages comes to what reading all of memory gives, whether or not the two readings differ.
    @Test func tableOfCopiesAgreesWithMemory() throws {
        let memory = try memory()
        let table = MemoryDigestTable(memory: memory)
        var random = SeededGenerator(seed: 11)
        for round in 0..<200 {
            let page = 0x100 + Int(random.next(below: 50))
            // A page of even bytes has nothing to mask.
            let bits: UInt64 = page % 3 == 0 ? 0xFEFE_FEFE_FEFE_FEFE : .max
            let words = (0..<8).map { _ in random.next() & bits }
            memory.write(words.withUnsafeBytes { [UInt8]($0) }, at: .init(UInt64(page) << 12 + UInt64(round) * 8))
            table.update(page: page, content: memory.page(page))
        }
        #expect(table.masked == MemoryDigest.ofAll(memory, kind: .masked))
        #expect(table.strict == MemoryDigest.ofAll(memory, kind: .strict))
        #expect(table.masked != table.strict)
    }

    /// What the fast code says on one processor has to be found on another.
    @Test func scalarAndVectorCodeHashAlike() {
        var random = SeededGenerator(seed: 5)
        let bytes = (0..<5000).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        bytes.withUnsafeBytes { all in
            for size in Array(0...300) + [1024, 4095, 4096, 5000] {
                let part = UnsafeRawBufferPointer(rebasing: all[..<size]), seed = random.next() & (size % 2 == 0 ? 0 : .max)
                #expect(XXH3.scalar(part, seed: seed) == XXH3.vector(part, seed: seed), "\(size) bytes, seed \(seed)")
            }
        }
        // As xxh128sum prints it.
        #expect(Array("vmrr".utf8).withUnsafeBytes { XXH3.scalar($0, seed: 0).description } == "86c71a25b43a25efeac101711356db4c")
    }
}

@Suite struct PageWalkTests {
    private func memory() throws -> GuestMemory { try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 8 << 20)) }

    private func put(_ memory: GuestMemory, _ address: UInt64, _ entry: UInt64) {
        memory.write(withUnsafeBytes(of: entry.littleEndian) { [UInt8]($0) }, at: .init(address))
    }

    @Test func fourLevelsWithLargePages() throws {
        let memory = try memory()
        var state = CPUState.reset().core
        state.control.cr0 = 0x8000_0001
        state.control.cr3 = 0x100_000
        state.control.efer = 1 << 10
        put(memory, 0x100_000 + 8, 0x101_003)
        put(memory, 0x101_000, 0x102_003)
        put(memory, 0x102_000, 0x103_003)
        put(memory, 0x103_000 + 16, 0x8000_0000_0020_5003)
        put(memory, 0x102_008, 0x0060_0083)
        put(memory, 0x101_008, 0x4000_0083)
        let walk = PageWalk(memory: memory, state: state)
        let top: UInt64 = 1 << 39
        #expect(walk.physical(top + 0x2123) == .init(0x20_5123))
        #expect(walk.physical(top + 0x20_0123) == .init(0x60_0123))
        #expect(walk.physical(top + 0x4000_0000 + 0x123) == .init(0x4000_0123))
        #expect(walk.physical(top + 0x3000) == nil)
        #expect(walk.physical(0) == nil)
    }

    @Test func twoLevelsAndPAE() throws {
        let memory = try memory()
        var state = CPUState.reset().core
        state.control.cr0 = 0x8000_0001
        state.control.cr3 = 0x100_000
        memory.write([0x03, 0x10, 0x10, 0], at: .init(0x100_004))
        memory.write([0x03, 0x50, 0x20, 0], at: .init(0x101_008))
        #expect(PageWalk(memory: memory, state: state).physical(0x40_2123) == .init(0x20_5123))

        state.control.cr4 = 1 << 5
        put(memory, 0x100_008, 0x102_001)
        put(memory, 0x102_000, 0x0060_0083)
        #expect(PageWalk(memory: memory, state: state).physical(0x4000_0123) == .init(0x60_0123))
    }

    @Test func repeatedStringsAreRecognised() throws {
        let memory = try memory()
        var state = CPUState.reset().core
        state.cs = SegmentRegister(limit: .max, attributes: 0xA9B)
        state.general.rip = 0x100_000
        func length(_ code: [UInt8], long: Bool = true) -> Int? {
            memory.write(code + [UInt8](repeating: 0x90, count: 16), at: .init(0x100_000))
            state.control.efer = long ? 1 << 10 : 0
            return PageWalk(memory: memory, state: state).repeatedStringLength()
        }
        #expect(length([0xF3, 0xA4]) == 2)
        #expect(length([0x66, 0xF2, 0x48, 0xAE]) == 4)
        #expect(length([0xF3, 0x6C]) == 2)
        #expect(length([0xA4]) == nil)
        #expect(length([0xF3, 0x90]) == nil, "PAUSE")
        #expect(length([0xF3, 0x48, 0xA5], long: false) == nil, "DEC EAX outside 64-bit mode")
    }
}
