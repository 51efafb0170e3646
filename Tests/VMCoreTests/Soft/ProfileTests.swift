import Testing
import VMCore

/// What the manuals leave undefined, as processors leave it: the values for Intel's were taken from one.
@Suite struct ProfileTests {
    struct Case: CustomTestStringConvertible, Sendable {
        var what: String
        /// 16-bit code.
        var code: [UInt8]
        /// Whether all arithmetic flags are set before it, or none.
        var allSet: Bool
        var amd, intel, qemu: UInt64

        var testDescription: String { what }
    }

    private static let cases = [
        Case(what: "IMUL", code: [0xB8, 3, 0, 0xB9, 5, 0, 0x0F, 0xAF, 0xC1], allSet: true, amd: 0xD4, intel: 0x04, qemu: 0x04),
        Case(what: "IMUL with the result 0", code: [0xB8, 0, 0, 0x0F, 0xAF, 0xC0], allSet: true, amd: 0xD4, intel: 0x04, qemu: 0x44),
        Case(what: "DIV", code: [0xB8, 7, 0, 0xBA, 0, 0, 0xB9, 2, 0, 0xF7, 0xF1], allSet: true, amd: 0x811, intel: 0x8D5, qemu: 0x8D5),
        Case(what: "AF of SHL", code: [0xB8, 1, 0, 0xC1, 0xE0, 3], allSet: false, amd: 0x10, intel: 0, qemu: 0),
        Case(what: "OF of SHL by 3", code: [0xB8, 0, 0x80, 0xC1, 0xE0, 3], allSet: false, amd: 0x54, intel: 0x844, qemu: 0x44),
        Case(what: "OF of SHR by 3", code: [0xB8, 0, 0x80, 0xC1, 0xE8, 3], allSet: false, amd: 0x14, intel: 0x804, qemu: 0x04),
        Case(what: "ROL by an immediate", code: [0xB8, 0, 0x40, 0xC1, 0xC0, 3], allSet: true, amd: 0xD4, intel: 0x8D4, qemu: 0xD4),
        Case(what: "ROL by CL", code: [0xB8, 0, 0x40, 0xB1, 3, 0xD3, 0xC0], allSet: false, amd: 0, intel: 0x800, qemu: 0),
        Case(what: "RCL of 8 bits by 9", code: [0xB0, 0x40, 0xB1, 9, 0xD2, 0xD0], allSet: true, amd: 0x8D5, intel: 0x8D5, qemu: 0x8D5),
        Case(what: "RCR by 3", code: [0xB8, 0, 0x80, 0xC1, 0xD8, 3], allSet: false, amd: 0, intel: 0x800, qemu: 0),
        Case(what: "SHLD by 20", code: [0xB8, 0x34, 0x12, 0xB9, 0, 0, 0x0F, 0xA4, 0xC8, 20], allSet: false, amd: 0x54, intel: 0, qemu: 0),
        Case(what: "BSF", code: [0xB9, 1, 0x80, 0x0F, 0xBC, 0xC1], allSet: true, amd: 0x04, intel: 0x04, qemu: 0x80),
        Case(what: "BSF of 0", code: [0xB9, 0, 0, 0x0F, 0xBC, 0xC1], allSet: false, amd: 0x44, intel: 0x44, qemu: 0x44),
    ]

    @Test(arguments: cases, ProcessorProfile.Known.allCases)
    func flagsAreTheProcessors(_ one: Case, _ known: ProcessorProfile.Known) throws {
        // PUSH flags; POPF; the code; PUSHF; POP AX; OUT 0xf4, AX
        let flags: [UInt8] = one.allSet ? [0x68, 0xD7, 0x08, 0x9D] : [0x68, 0x02, 0x00, 0x9D]
        let machine = try SoftMachine(flags + one.code + [0x9C, 0x58, 0xE7, 0xF4]) { $0.profile = ProcessorProfile(of: known) }
        let expected = switch known {
        case .amd: one.amd
        case .intel: one.intel
        case .qemu: one.qemu
        }
        #expect(try machine.report() & 0x8D5 == expected)
    }

    /// In the lab, whose processor QEMU emulates: what is known of it is what the self-tests find there.
    @Test(.enabled(if: KVM.isUsable && HostProcessor.says("QEMU Virtual CPU"), "the processor here isn't one that QEMU emulates"))
    func theKnownWaysOfQEMUsProcessorsAreThoseMeasured() throws {
        #expect(try EngineHost.openKVM().profile == ProcessorProfile(of: .qemu))
    }

    @Test(arguments: ProcessorProfile.Known.allCases)
    func fxsaveStoresTheLastInstructionOnIntelsAlone(_ known: ProcessorProfile.Known) throws {
        // NOP; FLD1; FXSAVE [0x2000]
        let machine = try SoftMachine([0x90, 0xD9, 0xE8, 0x0F, 0xAE, 0x06, 0x00, 0x20] + SoftMachine.report(1)) {
            $0.profile = ProcessorProfile(of: known)
        }
        #expect(try machine.report() == 1)
        let stored = machine.engine.memory.load(.init(0x2008), as: UInt32.self)
        #expect(stored == (known == .intel ? UInt32(SoftMachine.start) + 1 : 0))
    }

    /// It is a part of the state, and of its bytes only where there is something.
    @Test func theLastInstructionIsEncodedWhereItIsKept() throws {
        var state = CPUState.reset()
        let without = state.encoded()
        state.floatingPoint.last.address = 0x7FFF_1234
        state.floatingPoint.last.opcode = 0x1E8
        let with = state.encoded()
        #expect(with.count == without.count + 18 && with[0] == without[0] + 2)
        #expect(CPUState(encoded: with)?.floatingPoint == state.floatingPoint)
        #expect(CPUState(encoded: without)?.floatingPoint.last.address == 0)
        state.timestampCounter = 7
        #expect(CPUState(encoded: state.encoded())?.floatingPoint == state.floatingPoint)
        // Nothing is encoded in two ways.
        #expect(CPUState(encoded: [with[0]] + without.dropFirst() + [UInt8](repeating: 0, count: 18)) == nil)
        #expect(CPUState(encoded: [5] + without.dropFirst()) == nil)
    }
}
