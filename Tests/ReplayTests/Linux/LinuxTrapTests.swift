import Testing
import VMCore

@Suite struct LinuxTrapTests {
    private static let rdtsc: [UInt8] = [0x0F, 0x31]
    private static let rdtscp: [UInt8] = [0x0F, 0x01, 0xF9]
    private static let cpuid: [UInt8] = [0x0F, 0xA2]

    private static func function(_ number: Int, _ offset: UInt64 = 0) -> UInt64 {
        SyntheticKernel.address(ofFunction: number) + offset
    }

    /// Function 3 reads the counter after four bytes; function 5 has the bytes within another instruction's; function 7
    /// has alternatives.
    private static func kernel(alternativeBytes: Int = 12) -> SyntheticKernel {
        var kernel = SyntheticKernel(functions: 1000)
        kernel.code = [
            (function(3, 4), rdtsc), (function(4, 6), rdtscp),
            // MOV EAX, imm32, and an instruction that is cut off where the next function begins.
            (function(5), [0xB8] + rdtsc + rdtsc), (function(6, 30), [0x0F, 0x0F]), (function(7), rdtsc),
            (function(10, 2), cpuid),
        ]
        kernel.alternatives = [
            (function(7), [0x0F, 0xAE, 0xE8] + rdtsc), (function(7), rdtscp), (function(8), []),
            (function(9), [0xB8] + rdtsc + [0, 0]),
        ]
        kernel.alternativeBytes = alternativeBytes
        return kernel
    }

    @Test(arguments: [12, 13, 14]) func instructionsAreReplacedInCodeAndAlternatives(alternativeBytes: Int) throws {
        let kernel = Self.kernel(alternativeBytes: alternativeBytes)
        let trapped = try LinuxTraps.set(.timestamps, in: kernel.bzImage(.lz4))
        let original = try ELFImage(kernel.elf)
        let code = try #require(original.section(".altinstr_replacement"))
        let expected = [
            (Self.function(3, 4), InstructionSites.Instruction.rdtsc), (Self.function(4, 6), .rdtscp), (Self.function(7), .rdtsc),
            (code.address + 3, .rdtsc), (code.address + 5, .rdtscp),
        ]
        // The lower half of an address is where the segment is loaded.
        #expect(trapped.sites.map(\.address.rawValue) == expected.map { $0.0 & 0xFFFF_FFFF })
        #expect(trapped.sites.map(\.instruction) == expected.map(\.1))
        // Nothing else is another.
        var patched = kernel.elf
        for (address, instruction) in expected {
            let offset = try #require(original.offset(of: address, count: 3))
            let bytes: [UInt8] = instruction == .rdtscp ? [0xE5, 0xEF, 0x90] : [0xE5, 0xEE]
            patched.replaceSubrange(offset..<(offset + bytes.count), with: bytes)
        }
        #expect(trapped.kernel == patched)
    }

    @Test func identificationIsReplacedWhereItIsAskedFor() throws {
        let kernel = Self.kernel()
        let alone = try LinuxTraps.set(.identification, in: kernel.elf)
        #expect(alone.sites == [.init(address: .init(Self.function(10, 2) & 0xFFFF_FFFF), instruction: .cpuid)])
        let offset = try #require(ELFImage(kernel.elf).offset(of: Self.function(10, 2), count: 2))
        #expect(Array(alone.kernel[offset..<(offset + 2)]) == [0xE5, 0xED])
        #expect(try LinuxTraps.set([.timestamps, .identification], in: kernel.elf).sites.count == 6)
    }

    /// What the soft engine records without a counter replays under KVM, which knows them by their places alone.
    @Test func theSoftEngineReplacesThemWhereTheCounterIsHidden() throws {
        let guest = LinuxGuest(kernel: Self.kernel().bzImage(.lz4), commandLine: "", initrd: nil)
        var configuration = MachineConfiguration(image: .linux(guest), memoryBytes: 64 << 20, wallClockStart: 0)
        configuration.timestamps = .hide
        let machine = try configuration.build(on: .soft)
        #expect(machine.sites == (try LinuxTraps.set(.timestamps, in: guest.kernel).sites) && machine.sites.count == 5)
        for site in machine.sites {
            #expect(machine.engine.memory.load(site.address, as: UInt8.self) == 0xE5)
        }
    }

    @Test func aKernelThatCannotBeSearchedIsRefused() throws {
        var nameless = Self.kernel()
        (nameless.symbols, nameless.code) = ([], [])
        #expect(throws: BootError.self) { try LinuxTraps.set(.timestamps, in: nameless.elf) }
        var strange = Self.kernel()
        strange.alternativeBytes = 12
        var bytes = strange.elf
        let table = try #require(ELFImage(bytes).section(".altinstructions"))
        bytes[table.content.lowerBound + 7] ^= 0x40
        #expect(throws: BootError.self) { try LinuxTraps.set(.timestamps, in: bytes) }
    }

    @Test(.enabled(if: RealKernel.path != nil, "no distribution kernel is at hand: see VMRR_LINUX"))
    func aDistributionsKernelIsSearched() throws {
        let file = try RealKernel.bytes()
        let trapped = try LinuxTraps.set(.timestamps, in: file)
        #expect((20...1000).contains(trapped.sites.count))
        #expect((20...1000).contains(try LinuxTraps.set(.identification, in: file).sites.count))
        let kernel = try ELFImage(trapped.kernel)
        let original = try ELFImage(LinuxPayload.kernel(in: file))
        let symbols = try KernelSymbols(kernel).symbols
        // The kernel's own reader of the counter begins with one.
        let reader = try #require(symbols.first { $0.name == "native_sched_clock" })
        let end = try #require(symbols.first { $0.address > reader.address })
        let range = reader.address..<end.address
        let segment = try #require(kernel.segments.first { $0.isExecutable })
        let inReader = trapped.sites.filter { range.contains($0.address.rawValue - segment.physical.rawValue + segment.virtual) }
        #expect(!inReader.isEmpty)
        let changed = zip(kernel.bytes, original.bytes).count { $0 != $1 }
        #expect(changed == trapped.sites.reduce(0) { $0 + ($1.instruction == .rdtscp ? 3 : 2) })
    }
}
