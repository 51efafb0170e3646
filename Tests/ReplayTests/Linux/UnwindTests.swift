import Replay
import Testing
import VMCore

@Suite struct UnwindTests {
    /// How versions of Linux put what an entry says into its bits.
    enum Version: CaseIterable {
        case linux4_14, linux6_3, linux6_4

        func flags(sp: UInt16, bp: UInt16 = 0, _ kind: Kind) -> UInt16 {
            let type: UInt16
            switch (self, kind) {
            case (.linux4_14, .end): type = 1 << 2
            case (.linux6_3, .end): type = 1 << 3
            case (.linux4_14, .registers): type = 1
            case (.linux6_3, .registers): type = 1 | 1 << 2
            case (.linux4_14, .frame): type = 2
            case (.linux6_3, .frame): type = 2 | 1 << 2
            case (.linux4_14, _), (.linux6_3, _): type = 0
            case (.linux6_4, .undefined): type = 0
            case (.linux6_4, .end): type = 1
            case (.linux6_4, .call): type = 2
            case (.linux6_4, .registers): type = 3 | 1 << 3
            case (.linux6_4, .frame): type = 4 | 1 << 3
            }
            return sp | bp << 4 | type << 8
        }
    }

    enum Kind { case undefined, end, call, registers, frame }

    private static let rsp: UInt16 = 5
    private static let rbp: UInt16 = 4
    private static let r10: UInt16 = 6
    private static let previous: UInt16 = 1
    private static let stack: UInt64 = 0x20_0000

    private static func function(_ number: Int, _ offset: UInt64 = 0) -> UInt64 {
        SyntheticKernel.address(ofFunction: number) + offset
    }

    /// Functions 0 to 5 keep their stack in different ways; what follows is unknown.
    private static func kernel(_ version: Version) -> SyntheticKernel {
        var kernel = SyntheticKernel(functions: 1000)
        kernel.hasOrcHeader = version == .linux6_4
        kernel.orc = [
            (function(0), 8, 0, version.flags(sp: rsp, .call)),
            // Behind a push of RBP and room for 16 bytes.
            (function(0, 8), 32, -16, version.flags(sp: rsp, bp: previous, .call)),
            (function(1), 16, -16, version.flags(sp: rbp, bp: previous, .call)),
            (function(2), 0, 0, version.flags(sp: rsp, .registers)),
            (function(3), 8, 0, version.flags(sp: rsp, .frame)),
            (function(4), 0, 0, version.flags(sp: r10, .call)),
            (function(5), 0, 0, version.flags(sp: 0, .end)),
            (function(6), 0, 0, version.flags(sp: 0, .undefined)),
        ]
        return kernel
    }

    private struct Guest {
        let memory: GuestMemory
        var core = CoreRegisters()
        var slide: UInt64 = 0
        let table: OrcTable

        init(_ version: Version) throws {
            memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 4 << 20))
            table = try #require(SymbolFile(UnwindTests.kernel(version).bzImage(.lz4)).unwinding)
            // Long mode; without paging the lower half of an address counts.
            core.control.cr0 = 1
            core.control.efer = 1 << 10 | 1 << 8
            core.cs.attributes = 1 << 9
            core.general.rsp = UnwindTests.stack
        }

        func push(_ words: [UInt64], at offset: UInt64 = 0) {
            memory.write(words.flatMap(\.little), at: .init(UnwindTests.stack + offset))
        }

        var frames: [Backtrace.Frame] {
            Backtrace(core, memory: memory, unwinding: KernelUnwinding(table: table, slide: slide)).frames()
        }
    }

    @Test(arguments: Version.allCases) func callsInterruptionsAndTheWayFromUserModeAreFollowed(version: Version) throws {
        var guest = try Guest(version)
        guest.core.general.rip = Self.function(0, 12)
        // Function 0, called by 1, whose frame hangs on RBP; called by 2, an entry from user mode with all registers.
        guest.push([1, 2, Self.stack + 0x40, Self.function(1, 4)])
        guest.push([0xAAAA, Self.function(2, 6)], at: 0x40)
        var registers = [UInt64](repeating: 0, count: 21)
        (registers[16], registers[17], registers[19]) = (0x40_1234, 0x33, 0x7FFF_0000)
        guest.push(registers, at: 0x50)
        #expect(guest.frames == [
            .init(address: Self.function(0, 12), kind: .here), .init(address: Self.function(1, 4), kind: .call),
            .init(address: Self.function(2, 6), kind: .call), .init(address: 0x40_1234, kind: .user),
        ])
    }

    @Test(arguments: Version.allCases) func interruptedKernelCodeIsUnwoundFromItsVeryInstruction(version: Version) throws {
        var guest = try Guest(version)
        guest.core.general.rip = Self.function(3, 2)
        guest.core.general.rbp = 0xDEAD
        // An error code, then what the processor pushed when it interrupted function 0 at its first instruction: there
        // nothing but the return address is on the stack. Behind the call from function 5 the stack ends.
        guest.push([0x0E, Self.function(0), 0x10, 0x202, Self.stack + 0x100, 0x18])
        guest.push([Self.function(5, 5)], at: 0x100)
        #expect(guest.frames == [
            .init(address: Self.function(3, 2), kind: .here), .init(address: Self.function(0), kind: .interrupted),
            .init(address: Self.function(5, 5), kind: .call),
        ])
    }

    @Test(arguments: Version.allCases) func aCallAtTheEndOfAFunctionIsTheFunctions(version: Version) throws {
        var guest = try Guest(version)
        guest.core.general.rip = Self.function(0)
        // The call is the last instruction of function 5, which has no caller; the return address is in function 6.
        guest.push([Self.function(6)])
        #expect(guest.frames.map(\.address) == [Self.function(0), Self.function(6)])
        #expect(!guest.frames.contains { $0.kind == .guess })
    }

    @Test func aStackInAnotherRegisterIsFollowedWhereTheRegisterIsKnown() throws {
        var guest = try Guest(.linux4_14)
        guest.core.general.rip = Self.function(4, 3)
        guest.core.general.r10 = Self.stack + 0x80
        guest.push([Self.function(5, 1)], at: 0x78)
        #expect(guest.frames.map(\.address) == [Self.function(4, 3), Self.function(5, 1)])
        // A caller's R10 isn't known.
        guest.core.general.rip = Self.function(0)
        guest.push([Self.function(4, 3), 0, 0])
        #expect(guest.frames.map(\.address) == [Self.function(0), Self.function(4, 3)])
    }

    @Test func aMovedKernelIsUnwoundWhereItLies() throws {
        var guest = try Guest(.linux4_14)
        guest.slide = 2 << 20
        guest.core.general.rip = Self.function(0) + guest.slide
        guest.push([Self.function(5, 5) + guest.slide])
        #expect(guest.frames.map(\.address) == [Self.function(0), Self.function(5, 5)].map { $0 + guest.slide })
    }

    @Test func whereTheTablesEndGuessesAreCalledSo() throws {
        var guest = try Guest(.linux4_14)
        guest.core.general.rip = Self.function(0)
        // Function 7 lies behind an entry that says nothing is known. On the stack there is one more return address.
        let call: [UInt8] = [0xE8, 0, 0, 0, 0]
        let target = Self.function(20)
        guest.memory.write(call, at: .init((target - 5) & 0xFFFF_FFFF))
        guest.push([Self.function(7, 4), 17, target, 18])
        #expect(guest.frames == [
            .init(address: Self.function(0), kind: .here), .init(address: Self.function(7, 4), kind: .call),
            .init(address: target, kind: .guess),
        ])
    }

    @Test func aStackInALoopEnds() throws {
        var guest = try Guest(.linux4_14)
        guest.core.general.rip = Self.function(1, 4)
        guest.core.general.rbp = Self.stack + 0x40
        guest.push([Self.stack + 0x40, Self.function(1, 4)], at: 0x40)
        #expect(guest.frames.count { $0.kind == .call } == 1)
    }
}
