import Testing
import VMCore

/// Far transfers into 16-bit code above 64 KiB, where EIP has its 32 bits. Source: Intel SDM Vol. 2A, CALL, JMP; Vol. 2B, RET, IRET.
@Suite struct FarTransferTests {
    /// A machine in flat 32-bit protected mode, and a segment of 16-bit code, 0x10, of 128 KiB from 0. #GP reports 13.
    private func machine(_ code: [UInt8], at target: UInt64 = 0x12000, _ targetCode: [UInt8]) throws -> SoftMachine {
        let machine = try SoftMachine(code)
        try machine.enterProtectedMode()
        machine.engine.memory.write([0xFF, 0xFF, 0, 0, 0, 0x9B, 0x01, 0], at: .init(0x4010))
        machine.engine.memory.write(targetCode, at: .init(target))
        // What is run where the upper half of EIP gets lost.
        machine.engine.memory.write(SoftMachine.report(0xEE), at: .init(target & 0xFFFF))
        machine.handleProtected(13, at: 0x800, SoftMachine.report(13))
        var state = try machine.engine.state()
        state.gdtr.limit = 0x17
        try machine.engine.setState(state)
        return machine
    }

    private static let jump: [UInt8] = [0xEA, 0x00, 0x20, 0x01, 0x00, 0x10, 0x00]

    @Test func aJumpKeepsEIP() throws {
        let machine = try machine(Self.jump, [0x90] + SoftMachine.report(1))
        #expect(try machine.report() == 1)
        #expect(try machine.engine.state().general.rip == 0x12005)
    }

    @Test func aJumpThroughMemoryKeepsEIP() throws {
        // JMP FAR [0x5000]
        let machine = try machine([0xFF, 0x2D, 0x00, 0x50, 0x00, 0x00], SoftMachine.report(1))
        machine.engine.memory.write([0x00, 0x20, 0x01, 0x00, 0x10, 0x00], at: .init(0x5000))
        #expect(try machine.report() == 1)
    }

    @Test func aCallAndItsReturnKeepEIP() throws {
        // CALL FAR 0x10:0x12000, and there CALL FAR dword 8:0x1800
        let machine = try machine([0x9A, 0x00, 0x20, 0x01, 0x00, 0x10, 0x00],
                                  [0x66, 0x9A, 0x00, 0x18, 0x00, 0x00, 0x08, 0x00] + SoftMachine.report(2))
        // MOV EAX, [ESP]; SHR EAX, 16; OUT 0xf4, AL; RETF
        machine.engine.memory.write([0x8B, 0x04, 0x24, 0xC1, 0xE8, 0x10, 0xE6, 0xF4, 0xCB], at: .init(0x1800))
        #expect(try machine.report() == 1)
        #expect(try machine.report() == 2)
    }

    @Test func anIRETKeepsEIP() throws {
        // PUSHF; PUSH 0x10; PUSH 0x12000; IRET
        let machine = try machine([0x9C, 0x6A, 0x10, 0x68, 0x00, 0x20, 0x01, 0x00, 0xCF], SoftMachine.report(1))
        #expect(try machine.report() == 1)
    }

    /// The limit is looked at by the transfer, which then leaves CS alone.
    @Test(arguments: [
        [0xEA, 0x00, 0x00, 0x02, 0x00, 0x10, 0x00], [0x9A, 0x00, 0x00, 0x02, 0x00, 0x10, 0x00],
        [0x6A, 0x10, 0x68, 0x00, 0x00, 0x02, 0x00, 0xCB], [0x9C, 0x6A, 0x10, 0x68, 0x00, 0x00, 0x02, 0x00, 0xCF],
    ] as [[UInt8]])
    func beyondTheLimitIsAFaultOfTheTransfer(_ code: [UInt8]) throws {
        let machine = try machine(code, SoftMachine.report(1))
        #expect(try machine.report() == 13)
        let state = try machine.engine.state()
        // Error code, EIP and CS of the frame.
        let frame = [0, 4, 8].map { machine.engine.memory.load(.init(state.general.rsp + $0), as: UInt32.self) }
        let length: UInt32 = [0xCB, 0xCF].contains(code.last) ? UInt32(code.count) - 1 : 0
        #expect(frame == [0, UInt32(SoftMachine.start) + length, 8])
    }

    /// Within 16-bit code branches cut EIP by their operand size, and nothing else does.
    @Test func branchesCutEIPByTheirOperandSize() throws {
        // JMP dword +0: stays; JMP +0: is cut
        let machine = try machine(Self.jump, [0x66, 0xE9, 0, 0, 0, 0, 0xB0, 1, 0xE6, 0xF4, 0xEB, 0])
        machine.engine.memory.write(SoftMachine.report(2), at: .init(0x200C))
        #expect(try machine.report() == 1)
        #expect(try machine.report() == 2)
    }

    @Test(arguments: [[0x31, 0xC9, 0xE3, 0], [0xB1, 2, 0xE2, 0], [0x31, 0xC0, 0x74, 0], [0x68, 0x04, 0x20, 0xC3], [0x90, 0xE8, 0, 0]] as [[UInt8]])
    func theyAllDo(_ code: [UInt8]) throws {
        // XOR CX, CX; JCXZ / MOV CL, 2; LOOP / XOR AX, AX; JE / PUSH; RET / NOP; CALL
        let machine = try machine(Self.jump, code + SoftMachine.report(1))
        let cut = 0x2000 + UInt64(code.count)
        machine.engine.memory.write(SoftMachine.report(2), at: .init(cut))
        #expect(try machine.report() == 2)
    }

    /// Real mode doesn't wrap either: what comes behind 0xFFFF is beyond the limit.
    @Test func realModeEndsAt64KiB() throws {
        // JMP to 0xFFFE; there INC AX; INC AX
        let machine = try SoftMachine([0xE9, 0xFB, 0xEF])
        machine.engine.memory.write([0x40, 0x40], at: .init(0xFFFE))
        machine.engine.memory.write(SoftMachine.report(1), at: .init(0x10000))
        machine.handle(13, at: 0x800, SoftMachine.report(13))
        #expect(try machine.report() == 13)
    }

    @Test func anIRETToVirtual8086ModeChecksIP() throws {
        // PUSH of GS, FS, DS, ES, SS; PUSH 0x7000; PUSH EFLAGS with VM; PUSH CS; PUSH 0x10000; IRET
        let machine = try machine([0x6A, 0, 0x6A, 0, 0x6A, 0, 0x6A, 0, 0x6A, 0, 0x68, 0, 0x70, 0, 0, 0x68, 2, 0, 2, 0, 0x6A, 0,
                                   0x68, 0, 0, 1, 0, 0xCF], SoftMachine.report(1))
        #expect(try machine.report() == 13)
    }

    @Test func aGateBeyondTheLimitIsAFaultOfItsDelivery() throws {
        let machine = try machine([0xCD, 0x14], SoftMachine.report(1))
        // INT 0x14 to 0x10:0x20000
        machine.engine.memory.write([0, 0, 0x10, 0, 0, 0x8E, 2, 0], at: .init(0x6000 + 8 * 0x14))
        #expect(try machine.report() == 13)
        let state = try machine.engine.state()
        #expect(machine.engine.memory.load(.init(state.general.rsp + 4), as: UInt32.self) == UInt32(SoftMachine.start))
    }
}
