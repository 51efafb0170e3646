import Testing
import VMCore

@Suite struct BootTests {
    private func memory(_ bytes: UInt64 = 16 << 20) throws -> GuestMemory {
        try GuestMemory(map: MemoryLayoutMap(pcWithBytes: bytes))
    }

    private func word(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value.littleEndian) { [UInt8]($0) } }

    private func header(flags: UInt32, _ rest: [UInt32] = []) -> [UInt8] {
        word(0x1BAD_B002) + word(flags) + word(0 &- 0x1BAD_B002 &- flags) + rest.flatMap(word)
    }

    /// An ELF file with one segment of code at 2 MiB that holds a multiboot header.
    private func elf(physical: UInt32 = 0x20_0000, fileBytes: UInt32 = 16, memoryBytes: UInt32 = 32) -> [UInt8] {
        var file: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, 1, 1, 1, 0] + [UInt8](repeating: 0, count: 8)
        file += [2, 0, 3, 0] + word(1) + word(physical) + word(52) + word(0) + word(0)
        file += [52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        file += word(1) + word(84) + word(physical) + word(physical) + word(fileBytes) + word(memoryBytes) + word(5) + word(4)
        return file + header(flags: 3) + [0x0F, 0x31, 0xF4, 0x90]
    }

    @Test func elfKernelIsLoadedWithItsInformation() throws {
        let memory = try memory()
        let modules = [BootModule(content: [1, 2, 3], commandLine: "one a=b"), BootModule(content: [], commandLine: "two")]
        let result = try Multiboot.load(elf(), commandLine: "key=value", modules: modules, into: memory)
        #expect(result.state.general.rax == 0x2BAD_B002)
        #expect(result.state.general.rip == 0x20_0000)
        #expect(result.state.control.cr0 == 0x11)
        #expect(result.state.cs.attributes & 0x400 != 0)
        #expect(result.code == [0x20_0000..<0x20_0010])
        #expect(memory.load(.init(0x20_0000), as: UInt32.self) == 0x1BAD_B002)

        let info = result.state.general.rbx
        func field(_ offset: UInt64) throws -> UInt32 { try #require(memory.load(.init(info + offset), as: UInt32.self)) }
        func text(_ address: UInt32) -> String {
            var bytes: [UInt8] = []
            while let byte = memory.load(.init(UInt64(address) + UInt64(bytes.count)), as: UInt8.self), byte != 0 {
                bytes.append(byte)
            }
            return String(decoding: bytes, as: UTF8.self)
        }
        #expect(try field(0) & 0x4D == 0x4D)
        #expect(try field(4) == 639)
        #expect(try field(8) == (16 << 10) - 1024)
        #expect(text(try field(16)) == "key=value")
        #expect(try field(20) == 2)
        let module = UInt64(try field(24))
        let start = try #require(memory.load(.init(module), as: UInt32.self))
        #expect(memory.read(.init(UInt64(start)), count: 3) == [1, 2, 3])
        #expect(text(try #require(memory.load(.init(module + 8), as: UInt32.self))) == "one a=b")
        // The memory map: entries of 20 bytes after their size, of which one is RAM from 1 MiB to the end.
        var entry = UInt64(try field(48))
        let end = entry + UInt64(try field(44))
        var high: UInt64 = 0
        while entry < end {
            let base = try #require(memory.load(.init(entry + 4), as: UInt64.self))
            let length = try #require(memory.load(.init(entry + 12), as: UInt64.self))
            if base == 1 << 20 { high = base + length }
            entry += 4 + UInt64(try #require(memory.load(.init(entry), as: UInt32.self)))
        }
        #expect(high == 16 << 20)
    }

    @Test func kernelWithAddressesIsLoadedByThem() throws {
        let memory = try memory()
        let image = [UInt8](repeating: 0x90, count: 4) + header(flags: 0x10003, [0x10_0004, 0x10_0000, 0, 0x20_0000, 0x10_0000])
        let result = try Multiboot.load(image, commandLine: "", modules: [], into: memory)
        #expect(result.state.general.rip == 0x10_0000)
        #expect(memory.read(.init(0x10_0000), count: 4) == [0x90, 0x90, 0x90, 0x90])
        #expect(result.state.general.rbx < 0x9_F000, "boot information fits below 640 KiB")
    }

    @Test func badKernelsAreRefused() throws {
        func refusal(_ image: [UInt8], _ line: String = "", memoryBytes: UInt64 = 16 << 20) -> BootError? {
            do {
                _ = try Multiboot.load(image, commandLine: line, modules: [], into: memory(memoryBytes))
                return nil
            } catch { return error as? BootError }
        }
        #expect(refusal([])?.isUsage == false)
        #expect(refusal(header(flags: 0x8000))?.isUsage == false)
        #expect(refusal(header(flags: 0x10003))?.isUsage == false, "the addresses are cut off")
        #expect(refusal(elf(physical: 0xA0000))?.isUsage == false, "a hole")
        #expect(refusal(elf(physical: 0xFFFF_FFF0))?.isUsage == false)
        #expect(refusal(elf(memoryBytes: 0xFFFF_FFFF))?.isUsage == false)
        #expect(refusal(elf(fileBytes: 4096, memoryBytes: 4096))?.isUsage == false, "beyond the file")
        #expect(refusal(elf(fileBytes: 32, memoryBytes: 16))?.isUsage == false)
        #expect(refusal(elf(), String(repeating: "x", count: 20_000))?.isUsage == true)
        #expect(refusal(elf(), memoryBytes: 1 << 20)?.isUsage == false)
        var wide = elf()
        wide[4] = 2
        #expect(refusal(wide)?.description.contains("64-bit") == true)
    }

    @Test func damagedKernelsNeverTrap() throws {
        var random = SeededGenerator(seed: 11)
        let kernels = [elf(), header(flags: 0x10003, [0x10_0000, 0x10_0000, 0, 0, 0x10_0000]) + [0xF4]]
        var refused = 0
        for round in 0..<4000 {
            var image = kernels[round % 2]
            for _ in 0...random.next(below: 4) {
                image[Int(random.next(below: UInt64(image.count)))] = UInt8(truncatingIfNeeded: random.next())
            }
            if random.next(below: 4) == 0 { image.removeLast(Int(random.next(below: UInt64(image.count)))) }
            do {
                _ = try Multiboot.load(image, commandLine: "", modules: [], into: memory())
            } catch is BootError {
                refused += 1
            }
        }
        #expect(refused > 1000)
    }

    @Test func flatImagesStartWhereTheyLie() throws {
        func start(_ address: UInt64) throws -> CPUState { try FlatBoot.load([0xF4], at: .init(address), into: memory()).state }
        #expect(try start(0x7C00).general.rip == 0x7C00)
        #expect(try start(0x7C00).cs.base == 0)
        #expect(try start(0x1_2345).cs.base == 0x1_2340)
        #expect(try start(0x1_2345).general.rip == 5)
        #expect(try start(0x20_0000).linearRIP == 0x20_0000)
        #expect(throws: BootError.self) { try start(0xA0000) }
        #expect(throws: BootError.self) { try start(16 << 20) }
        #expect(throws: BootError.self) { try FlatBoot.load([], at: .init(0x7C00), into: memory()) }
    }

    @Test func timestampSitesAreInstructionsNotBytes() throws {
        let memory = try memory()
        // MOV EAX, 0x00310F00 hides the bytes of RDTSC; RDTSC; RDTSCP; LFENCE; RDTSC with a prefix.
        let code: [UInt8] = [0xB8, 0x00, 0x0F, 0x31, 0x00, 0x0F, 0x31, 0x0F, 0x01, 0xF9, 0x0F, 0xAE, 0xE8, 0x66, 0x0F, 0x31]
        memory.write(code, at: .init(0x10_0000))
        let sites = InstructionSites.find(.timestamps, in: 0x10_0000..<0x10_0010, of: memory)
        #expect(sites.map(\.address) == [.init(0x10_0005), .init(0x10_0007)])
        #expect(sites.map(\.instruction) == [.rdtsc, .rdtscp])
        InstructionSites.replace(sites, in: memory)
        #expect(memory.read(.init(0x10_0005), count: 5) == [0xE5, 0xEE, 0xE5, 0xEF, 0x90])
        #expect(memory.read(.init(0x10_0001), count: 4) == [0x00, 0x0F, 0x31, 0x00])
    }
}
