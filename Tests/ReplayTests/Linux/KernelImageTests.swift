import Replay
import Testing
import Trace
import VMCore

@Suite struct KernelImageTests {
    @Test(arguments: SyntheticKernel.Packing.allCases) func kernelsAreTakenOutOfTheirImages(packing: SyntheticKernel.Packing)
        throws {
        let kernel = SyntheticKernel(functions: 1000)
        #expect(try LinuxPayload.kernel(in: kernel.bzImage(packing)) == kernel.elf)
        #expect(try LinuxPayload.kernel(in: kernel.elf) == kernel.elf)
    }

    @Test func whatCannotBeUnpackedIsNamed() {
        func message(_ file: [UInt8]) -> String {
            do {
                _ = try LinuxPayload.kernel(in: file)
                return "unpacked"
            } catch {
                #expect(!error.isUsage)
                return error.description
            }
        }
        #expect(message([]).contains("neither a bzImage"))
        #expect(message(SyntheticKernel.bzImage(payload: [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0])).contains("gzip"))
        #expect(message(SyntheticKernel.bzImage(payload: [1, 2, 3, 4, 5, 6, 7, 8, 9])).contains("unknown way"))
        // A few bytes that claim to be gigabytes are never given the room.
        let bomb = SyntheticKernel.lz4([UInt8](repeating: 0, count: 64)) + UInt32.max.little
        #expect(message(SyntheticKernel.bzImage(payload: bomb)).contains("claims"))
        let short = SyntheticKernel.lz4([UInt8](repeating: 0, count: 64)) + UInt32(65).little
        #expect(message(SyntheticKernel.bzImage(payload: short)).contains("damaged"))
        let noKernel = SyntheticKernel.zstd([UInt8](repeating: 9, count: 64)) + UInt32(64).little
        #expect(message(SyntheticKernel.bzImage(payload: noKernel)).contains("isn't an ELF file"))
    }

    @Test(arguments: SyntheticKernel.Layout.allCases, [false, true])
    func symbolsAreDecodedFromTheKernelsOwnTables(layout: SyntheticKernel.Layout, hasPerCPU: Bool) throws {
        var kernel = SyntheticKernel(functions: 1000)
        (kernel.layout, kernel.hasPerCPU) = (layout, hasPerCPU)
        // Longer than a byte's length says.
        let long = String(repeating: "abcdefghij", count: 20)
        kernel.symbols.append(.init(name: long, type: "D", address: SyntheticKernel.address(ofFunction: 1000)))
        let table = try SymbolTable(file: kernel.bzImage(.lz4))
        #expect(table.symbols.count == kernel.symbols.count)
        for symbol in kernel.symbols {
            let found = try #require(table[symbol.name])
            #expect(found.address == symbol.address)
        }
        let inner = SyntheticKernel.address(ofFunction: 998) + 31
        #expect(table.name(of: inner) == "function_998+0x1f")
        #expect(try KernelSymbols(ELFImage(kernel.elf)).symbols.filter(\.isCode).count == 1001)
    }

    @Test func ofSeveralNamesTheFirstIsShown() throws {
        var kernel = SyntheticKernel(functions: 1000)
        let place = SyntheticKernel.address(ofFunction: 10)
        let index = try #require(kernel.symbols.firstIndex { $0.address == place })
        kernel.symbols.insert(.init(name: "alias", type: "T", address: place), at: index + 1)
        let table = try SymbolTable(file: kernel.elf)
        #expect(table.name(of: place) == "function_10" && table.name(of: place + 4) == "function_10+0x4")
        #expect(table["alias"]?.address == place)
    }

    @Test func aReturnFromTheEndOfAFunctionBearsItsName() throws {
        let table = try SymbolTable(file: SyntheticKernel(functions: 1000).elf)
        let end = SyntheticKernel.address(ofFunction: 8)
        #expect(table.name(of: end) == "function_8" && table.name(ofReturnTo: end) == "function_7+0x20")
    }

    @Test func anImageWithoutSymbolsSaysSo() {
        var kernel = SyntheticKernel(functions: 1000)
        kernel.symbols = []
        #expect(throws: SymbolError.self) { try SymbolTable(file: kernel.elf) }
    }

    /// Bytes changed here and there, and the file cut off: an error or symbols, no crash, no endless search.
    @Test(arguments: SyntheticKernel.Packing.allCases) func damagedKernelsAreRefused(packing: SyntheticKernel.Packing) {
        let good = SyntheticKernel(functions: 700).bzImage(packing)
        var random = SeededGenerator(seed: 5)
        for _ in 0..<300 {
            var bytes = good
            for _ in 0..<(1 + Int(random.next(below: 3))) {
                bytes[Int(random.next(below: UInt64(bytes.count)))] = UInt8(truncatingIfNeeded: random.next(below: 256))
            }
            _ = try? SymbolFile(bytes)
        }
        // Of the headers every byte counts.
        for index in Array(0x1F0..<0x260) + Array(1552..<1700) {
            for value in [0, 0x7F, 0xFF, good[index] ^ 1] as [UInt8] {
                var bytes = good
                bytes[index] = value
                _ = try? SymbolFile(bytes)
            }
        }
        for length in stride(from: 0, to: good.count, by: 97) { _ = try? SymbolFile(Array(good[..<length])) }
    }

    @Test(.needsKVM) func aMovedKernelIsFoundByItsSystemCallEntry() throws {
        let folder = try Folder()
        let kvm = try KVM()
        try Guests.record("user", interval: 20, to: folder("user.vmrr"), on: kvm)
        let reader = try TraceReader(path: folder("user.vmrr"))
        let timeline = try kvm.timeline(folder("user.vmrr"))
        let index = try #require(CPUState.msrIndices.firstIndex(of: 0xC000_0082))
        let entries = try timeline.checkpointExits.map { exit in
            try timeline.seek(to: exit)
            return try timeline.state().msrs[index]
        }
        // The guest has none at the start, then one that it tries SYSCALL out with, then another.
        let (first, last) = (try #require(entries.first { $0 != 0 }), try #require(entries.last))
        try #require(entries.first == 0 && last != 0)
        func table(_ address: UInt64) -> SymbolTable { SymbolTable([Symbol(name: "entry_SYSCALL_64", address: address)]) }
        for (exit, entry) in [(nil, last), (reader.lastExit, last), (reader.firstExit, first)] {
            #expect(try KernelSlide.find(in: reader, of: table(entry), near: exit) == 0)
            #expect(try KernelSlide.find(in: reader, of: table(entry &- 6 << 20), near: exit) == 6 << 20)
            // No kernel is moved by a page, nor by gigabytes: it is another one.
            #expect(throws: SymbolError.self) { try KernelSlide.find(in: reader, of: table(entry &- 4096), near: exit) }
            #expect(throws: SymbolError.self) { try KernelSlide.find(in: reader, of: table(entry &- 2 << 30), near: exit) }
        }
        #expect(!KernelSlide.concerns(SymbolTable([Symbol(name: "main", address: last)])))
        #expect(table(last).moved(by: 4096) == [Symbol(name: "entry_SYSCALL_64", address: last + 4096)])
    }

    @Test(.enabled(if: RealKernel.path != nil, "no distribution kernel is at hand: see VMRR_LINUX"))
    func aDistributionsKernelIsUnderstood() throws {
        let file = try RealKernel.bytes()
        let kernel = try ELFImage(LinuxPayload.kernel(in: file))
        let symbols = try KernelSymbols(kernel).symbols
        #expect(symbols.count > 50_000)
        let banner = try #require(symbols.first { $0.name == "linux_banner" })
        let offset = try #require(kernel.offset(of: banner.address, count: 14))
        #expect(String(decoding: kernel.bytes[offset..<(offset + 14)], as: UTF8.self) == "Linux version ")
        let table = try SymbolFile(file)
        #expect(table.unwinding != nil)
        #expect(Set(["entry_SYSCALL_64", "schedule", "panic"]).isSubset(of: table.symbols.map(\.name)))
    }
}
