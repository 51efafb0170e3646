/// What the processor here does in its own way: `ProcessorProfile`.
extension SelfTests {
    func profile() throws(HostError) -> ProcessorProfile {
        var found = ProcessorProfile()
        found.undefinedFlags = try undefinedFlags(user: false)
        let user = try undefinedFlags(user: true)
        if user != found.undefinedFlags { found.userFlags = user }
        found.ownFeatures = try ownFeatures()
        found.bitTestsVary = try bitTestsVary()
        (found.mxcsrMask, found.unwrittenBySave) = try savedArea()
        found.keepsLastInstruction = try keptLastInstruction(user: true) != 0
        if found.keepsLastInstruction { found.halvesLastInstruction = try keptLastInstruction(user: false) >> 32 == 0 }
        found.halvesSysenter = try sysenterIsHalved()
        found.faultsWithoutResume = try faultsWithoutResume()
        found.transfersSetAccessed = try transferSetsAccessed()
        found.readsBeforeModifying = try readsBeforeModifying()
        return found
    }

    /// The answers for leaves 1 and 7 at CPL 0 that aren't the model's; nil where all are.
    private func ownFeatures() throws(HostError) -> [CPUIDEntry]? {
        var own: [CPUIDEntry] = []
        for leaf in [1, 7] as [UInt8] {
            if let answer = try answer(leaf, user: false), !model.entries.contains(answer) { own.append(answer) }
        }
        return own.isEmpty ? nil : own
    }

    /// What CPUID answers for a leaf and subleaf 0; nil where it can't be executed.
    func answer(_ leaf: UInt8, user: Bool) throws(HostError) -> CPUIDEntry? {
        // MOV EAX, leaf; XOR ECX, ECX; CPUID; OUT port, EAX; the same for EBX, ECX and EDX by way of EAX
        let out: [UInt8] = [0xE7, Self.port]
        let code = [0xB8, leaf, 0, 0, 0, 0x31, 0xC9, 0x0F, 0xA2] + out + [0x89, 0xD8] + out + [0x89, 0xC8] + out + [0x89, 0xD0] + out
        let engine = try machine(code, .long(user: user))
        var found: [UInt32] = []
        for _ in 0..<4 {
            guard case .exit(.portWrite, let value) = see(engine, .none) else { return nil }
            found.append(UInt32(truncatingIfNeeded: value))
        }
        return CPUIDEntry(UInt32(leaf), subleaf: leaf == 7 ? 0 : nil, eax: found[0], ebx: found[1], ecx: found[2], edx: found[3])
    }

    /// The arithmetic flags after each of some pieces of code in 64-bit mode, in one guest; nil for the piece that faults and all
    /// behind it. Before each all flags are set, or none is. A piece may make exits of its own.
    private func flags(after pieces: [(code: [UInt8], allSet: Bool, exits: Int)], user: Bool) throws(HostError) -> [UInt64?] {
        // PUSH flags; POPF; the code; PUSHF; POP RAX; OUT port, EAX
        var program: [UInt8] = []
        for piece in pieces {
            program += [0x68, piece.allSet ? 0xD7 : 0x02, piece.allSet ? 0x08 : 0x00, 0, 0, 0x9D] + piece.code
            program += [0x9C, 0x58, 0xE7, Self.port]
        }
        // The handler reports what no flags are: bit 1 of RFLAGS is always set.
        let engine = try machine(program + [0x0F, 0x0B], .long(user: user), handler: report(0x01) + [0x0F, 0x0B])
        var found: [UInt64?] = []
        for piece in pieces {
            for _ in 0..<piece.exits { _ = see(engine, .none) }
            guard case .exit(.portWrite, let value) = see(engine, .none), value != 0x01 else { break }
            found.append(value & 0x8D5)
        }
        return found + [UInt64?](repeating: nil, count: pieces.count - found.count)
    }

    /// Whether an exit before BT changes what it leaves in OF and AF.
    private func bitTestsVary() throws(HostError) -> Bool {
        // MOV EAX, 0x7FFFFFFF; INC EAX, which sets both; BT ECX, 0
        let set: [UInt8] = [0xB8, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xC0], test: [UInt8] = [0x0F, 0xBA, 0xE1, 0]
        let exit: [UInt8] = [0xE6, Self.port]  // OUT port, AL
        let found = try flags(after: [(set + test, false, 0), (set + exit + test, false, 1)], user: true)
        return found[0] != found[1]
    }

    /// A way that is none of those known counts as the usual one.
    private func undefinedFlags(user: Bool) throws(HostError) -> UndefinedFlags {
        var found = UndefinedFlags()
        let flags = try flags(after: [
            // MOV EAX, 3; LEA ECX, [RAX + 2]; IMUL EAX, ECX: the product has an even number of bits set.
            ([0xB8, 3, 0, 0, 0, 0x8D, 0x48, 2, 0x0F, 0xAF, 0xC1], true, 0),
            // XOR EAX, EAX; IMUL EAX, EAX
            ([0x31, 0xC0, 0x0F, 0xAF, 0xC0], true, 0),
            // MOV EAX, 7; MOV ECX, 2; MOV EDX, 0; DIV ECX
            ([0xB8, 7, 0, 0, 0, 0xB9, 2, 0, 0, 0, 0xBA, 0, 0, 0, 0, 0xF7, 0xF1], true, 0),
            // MOV EAX, 1; SHL EAX, 3
            ([0xB8, 1, 0, 0, 0, 0xC1, 0xE0, 3], false, 0),
            // MOV EAX, 0x80000000; SHL EAX, 3
            ([0xB8, 0, 0, 0, 0x80, 0xC1, 0xE0, 3], false, 0),
            // MOV EAX, 0; ROL EAX, 3
            ([0xB8, 0, 0, 0, 0, 0xC1, 0xC0, 3], true, 0),
            // MOV ECX, 0x80000001; BSF EAX, ECX
            ([0xB9, 1, 0, 0, 0x80, 0x0F, 0xBC, 0xC1], true, 0),
            // XOR EAX, EAX; MOV ECX, 3; ANDN EAX, EAX, ECX, which not all have
            ([0x31, 0xC0, 0xB9, 3, 0, 0, 0, 0xC4, 0xE2, 0x78, 0xF2, 0xC1], true, 0),
        ], user: user)
        found.multiplicationSetsResult = flags[0] == 0x04
        found.multiplicationClearsZero = found.multiplicationSetsResult && flags[1] == 0x04
        found.divisionKeepsAll = flags[2] == 0x8D5
        found.shiftSetsAuxiliary = flags[3] != 0
        found.shiftsOverflowAtOnce = (flags[4] ?? 0) & RFlags.overflow != 0
        found.rotationsKeepOverflow = (flags[5] ?? 0) & RFlags.overflow != 0
        found.scanTestsSource = flags[6] == 0x80
        found.scanSetsResult = flags[6] == 0x04
        found.bitManipulationClears = flags[7] == 0
        found.doubleShiftsReturn = try doubleShiftsReturn(user: user)
        return found
    }

    private func doubleShiftsReturn(user: Bool) throws(HostError) -> Bool {
        // MOV EAX, 0x1234; XOR ECX, ECX; SHLD AX, CX, 20; OUT port, EAX
        let code: [UInt8] = [0xB8, 0x34, 0x12, 0, 0, 0x31, 0xC9, 0x66, 0x0F, 0xA4, 0xC8, 20, 0xE7, Self.port]
        return see(try machine(code, .long(user: user)), .none) == .exit(.portWrite, value: 1)
    }

    /// What FXSAVE at CPL 3 stores as the bits that MXCSR may have, nil where it stores none, and what it leaves as it was of the
    /// x87's part of its area: nothing where it can't be executed.
    private func savedArea() throws(HostError) -> (mxcsrMask: UInt32?, unwritten: UInt8) {
        // FXSAVE [0x9000]
        let engine = try machine([0x0F, 0xAE, 0x04, 0x25, 0, 0x90, 0, 0] + report(1), .long(user: true))
        let area = GuestPhysicalAddress(0x9000)
        // MXCSR_MASK, at byte 28, stays 0.
        engine.memory.write([UInt8](repeating: 0xA5, count: 24), at: area)
        engine.memory.write([UInt8](repeating: 0xA5, count: 128), at: area + 32)
        guard see(engine, .none) == .exit(.portWrite, value: 1) else { return (nil, 0) }
        func isUnwritten(_ range: Range<UInt64>) -> Bool {
            range.allSatisfy { engine.memory.load(area + $0, as: UInt8.self) == 0xA5 }
        }
        var unwritten: UInt8 = 0
        if isUnwritten(5..<6) { unwritten |= UnwrittenBySave.tagPadding }
        if isUnwritten(6..<8) { unwritten |= UnwrittenBySave.opcode }
        if isUnwritten(8..<24) { unwritten |= UnwrittenBySave.pointers }
        if isUnwritten(42..<48) { unwritten |= UnwrittenBySave.registerPadding }
        let mask = engine.memory.load(area + 28, as: UInt32.self) ?? 0
        return (mask == 0 ? nil : mask, unwritten)
    }

    /// What FXSAVE64 stores of where the last x87 instruction was, after FXRSTOR64 has loaded an address of 47 bits and the host
    /// has had the processor.
    private func keptLastInstruction(user: Bool) throws(HostError) -> UInt64 {
        // FXRSTOR64 [0x9000]; OUT port, AL; FXSAVE64 [0x9400]
        let engine = try machine([0x48, 0x0F, 0xAE, 0x0C, 0x25, 0, 0x90, 0, 0, 0xE6, Self.port]
            + [0x48, 0x0F, 0xAE, 0x04, 0x25, 0, 0x94, 0, 0] + report(1), .long(user: user))
        let area = GuestPhysicalAddress(0x9000), saved = GuestPhysicalAddress(0x9400)
        engine.memory.write(UInt16(0x37F).bytes, at: area)
        engine.memory.write(UInt64(0x7ABC_1234_5678).bytes, at: area + 8)
        engine.memory.write(UInt32(0x1F80).bytes, at: area + 24)
        _ = see(engine, .none)
        guard see(engine, .none) == .exit(.portWrite, value: 1) else { return 0 }
        return engine.memory.load(saved + 8, as: UInt64.self) ?? 0
    }

    /// Whether a page fault at CPL 3 of an instruction that modifies memory isn't one of a write. The locked form, too, is
    /// taken to be so.
    private func readsBeforeModifying() throws(HostError) -> Bool {
        // ADD [0x400000], EAX, which isn't mapped; the handler: MOV EAX, [RSP]; OUT port, EAX
        let engine = try machine([0x01, 0x04, 0x25, 0, 0, 0x40, 0], .long(user: true),
                                 handler: [0x8B, 0x04, 0x24, 0xE7, Self.port])
        return see(engine, .none) == .exit(.portWrite, value: 4)
    }

    /// Whether SYSENTER_ESP loses its upper half.
    private func sysenterIsHalved() throws(HostError) -> Bool {
        let engine = try machine(report(1), .long(user: false))
        var state = try engine.state()
        state.msrs[1] = 0x12_3456_789A
        try engine.setState(state)
        return try engine.state().msrs[1] == 0x3456_789A
    }

    /// The faults at CPL 3 whose pushed flags lack RF. Those that aren't tried are as #DE is; where RF can't be seen it counts
    /// as set.
    private func faultsWithoutResume() throws(HostError) -> UInt32 {
        // The handlers: MOV EAX, [RSP + 16], or 24 behind an error code; OUT port, EAX
        func lacksResume(_ code: [UInt8], hasErrorCode: Bool) throws(HostError) -> Bool {
            let engine = try machine(code, .long(user: true),
                                     handler: [0x8B, 0x44, 0x24, hasErrorCode ? 24 : 16, 0xE7, Self.port])
            guard case .exit(.portWrite, let flags) = see(engine, .none) else { return false }
            return flags & RFlags.resume == 0
        }
        // XOR ECX, ECX; DIV ECX
        var found: UInt32 = try lacksResume([0x31, 0xC9, 0xF7, 0xF1], hasErrorCode: false) ? .max : 0
        let tried: [(vector: UInt8, code: [UInt8], hasErrorCode: Bool)] = [
            (6, [0x0F, 0x0B], false),  // UD2
            (13, [0xF4], true),  // HLT
            (14, [0xA0, 0, 0, 0x40, 0, 0, 0, 0, 0], true),  // MOV AL, [0x400000], which isn't mapped
        ]
        for fault in tried {
            let bit: UInt32 = 1 << UInt32(fault.vector)
            if try lacksResume(fault.code, hasErrorCode: fault.hasErrorCode) { found |= bit } else { found &= ~bit }
        }
        return found
    }

    /// Whether a far return sets the accessed bit of the code segment's descriptor. Where that can't be seen it counts as
    /// set.
    private func transferSetsAccessed() throws(HostError) -> Bool {
        // PUSH 8; PUSH the address of the report; RETFQ
        let engine = try machine([0x6A, 0x08, 0x68, 0x00, 0x11, 0, 0, 0x48, 0xCB], .long(user: false))
        engine.memory.write(report(1), at: .init(Self.code + 0x100))
        // The second descriptor, and in it the byte with its type.
        let access = GuestPhysicalAddress(0x4000 + 8 + 5)
        engine.memory.write([0x9A], at: access)
        guard see(engine, .none) == .exit(.portWrite, value: 1), let byte = engine.memory.load(access, as: UInt8.self) else {
            return true
        }
        return byte & 1 != 0
    }
}
