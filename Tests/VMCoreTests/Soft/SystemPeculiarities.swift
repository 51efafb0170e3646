import Foundation
import VMCore

/// What a KVM that emulates kernel code does otherwise than processors do: measured on one, and compared with the manual.
/// The soft engine follows the manual in each.
struct SystemPeculiarity {
    var what: String
    /// The case, what came of it in KVM, and in the soft engine.
    var applies: @Sendable (SystemCase, SystemOutcome, SystemOutcome) -> Bool
    /// Takes the peculiarity out of both outcomes, so that all else is compared; nil where nothing can be compared.
    var mend: (@Sendable (inout SystemOutcome, inout SystemOutcome) -> Void)?

    static let alignment: UInt64 = 1 << 18
    private static let privilegeAndNesting: UInt64 = 0x7000

    /// Takes bytes of memory over, where they are compared at all.
    private static func copy(_ count: Int, at address: UInt64, from other: SystemOutcome, to outcome: inout SystemOutcome) {
        guard (SystemLayout.start..<(SystemLayout.end - UInt64(count))).contains(address) else { return }
        let place = Int(address - SystemLayout.start)
        outcome.memory.replaceSubrange(place..<(place + count), with: other.memory[place..<(place + count)])
    }

    /// Sets the accessed bit in all descriptors of the GDT, and of CS and SS.
    private static func setAccessed(_ outcome: inout SystemOutcome) {
        let table = Int(SystemLayout.gdt - SystemLayout.start)
        for i in SystemLayout.descriptors.indices where outcome.memory[table + 8 * i + 5] & 0x10 != 0 {
            outcome.memory[table + 8 * i + 5] |= 1
        }
        outcome.state.cs.attributes |= 1
        outcome.state.ss.attributes |= 1
    }

    /// What MOV has in its general register.
    private static func value(_ one: SystemCase) -> UInt64 {
        let registers = one.state.general
        return [registers.rax, registers.rcx, registers.rdx, registers.rbx, registers.rsp, registers.rbp, registers.rsi,
                registers.rdi][Int(one.code.last ?? 0) & 7]
    }

    /// #TS, #NP, #SS, #GP
    private static let faults: Set<Int?> = [10, 11, 12, 13]

    private static func errorCode(_ outcome: SystemOutcome) -> UInt8 {
        let place = outcome.state.general.rsp &- SystemLayout.start
        return place < SystemLayout.end - SystemLayout.start ? outcome.memory[Int(place)] : 0
    }

    private static func isOuter(_ outcome: SystemOutcome) -> Bool { outcome.ending == .report && outcome.state.core.cpl == 3 }

    static let all: [Self] = [
        // SDM Vol. 3A, 6.12.1.3: TF, IF, VM, RF and NT.
        Self(what: "exceptions clear AC", applies: { _, a, _ in a.vector != nil },
             mend: { a, b in
                 a.state.general.rflags &= ~alignment
                 b.state.general.rflags &= ~alignment
             }),
        // SDM Vol. 2, IRET and SYSRET: both are loaded. There user mode runs on the processor, in a host's process.
        Self(what: "user mode has no IOPL and no NT", applies: { _, a, b in isOuter(a) && isOuter(b) },
             mend: { a, b in
                 a.state.general.rflags &= ~privilegeAndNesting
                 b.state.general.rflags &= ~privilegeAndNesting
             }),
        // SDM Vol. 2, SYSRET: #UD without EFER.SCE, and no 64-bit code without REX.W; RFLAGS keeps no reserved bits of R11.
        Self(what: "SYSRET goes to 64-bit code at CPL 3 whatever speaks against it",
             applies: { one, a, b in
                 one.name == "SYSRET" && (one.mode != .long64 || one.code[0] != 0x48 || b.vector != nil || a.vector != nil)
             }),
        // APM Vol. 3, SYSEXIT: #UD in long mode.
        Self(what: "SYSEXIT executes in long mode on AMD processors",
             applies: { one, a, b in one.name == "SYSEXIT" && b.vector == 6 && a.vector != 6 }),
        // SDM Vol. 2, SWAPGS: #UD outside 64-bit mode.
        Self(what: "SWAPGS executes outside 64-bit mode",
             applies: { one, a, b in one.name == "SWAPGS" && one.mode != .long64 && b.vector == 6 && a.vector == nil }),
        // SDM Vol. 2, RDFSBASE: #UD without CR4.FSGSBASE, and outside 64-bit mode.
        Self(what: "RDFSBASE and its kin execute without CR4.FSGSBASE",
             applies: { one, a, b in one.name == "RDFSBASE and kin" && b.vector == 6 && a.vector != 6 }),
        // SDM Vol. 2, IRET: #GP with the selector, CS is checked before SS is, and 32-bit code has the instruction.
        Self(what: "IRET is #GP in 32-bit code, with an operand of less than 64 bits, and to code of the LDT",
             applies: { one, a, b in
                 one.name == "IRET" && a.vector == 13 && b.vector != 13 && (one.code[0] != 0x48 || b.state.cs.selector & 4 != 0)
             }),
        // The same, of SS.
        Self(what: "IRET to a stack of the LDT is #GP with its selector",
             applies: { one, a, b in
                 let ss = b.state.ss.selector
                 return one.name == "IRET" && a.vector == 13 && b.vector == nil && ss & 4 != 0 && errorCode(a) == UInt8(ss & 0xFC)
             }),
        // What IRET does otherwise (below) is in the frame of the fault.
        Self(what: "IRET leads to a fault",
             applies: { one, a, b in
                 let frame = SystemLayout.stack - 0x30..<SystemLayout.stack
                 return one.name == "IRET" && a.vector != nil && b.vector != nil && !frame.contains(b.state.general.rsp)
             }),
        Self(what: "IRET is done before it faults, and takes anything for a stack segment",
             applies: { one, a, b in
                 one.name == "IRET" && b.vector != nil && (a.vector == nil || a.state.general.rsp != b.state.general.rsp)
             }),
        Self(what: "IRET checks in another order and pushes other error codes",
             applies: { one, a, b in one.name == "IRET" && faults.contains(a.vector) && faults.contains(b.vector) },
             mend: { a, b in
                 a.state.general.rip = b.state.general.rip
                 copy(8, at: a.state.general.rsp, from: b, to: &a)
             }),
        // SDM Vol. 2, LTR and LLDT: #GP with the selector.
        Self(what: "LTR and LLDT of a selector of the LDT push 0",
             applies: { one, a, b in
                 ["LTR", "LLDT"].contains(one.name) && a.vector == 13 && b.vector == 13 && errorCode(a) == 0 && errorCode(b) & 4 != 0
             },
             mend: { a, b in copy(8, at: a.state.general.rsp, from: b, to: &a) }),
        // SDM Vol. 2, IRET: at CPL 0 IOPL is loaded, and reserved flags are not.
        Self(what: "IRET loads reserved flags and no IOPL",
             applies: { one, a, b in one.name == "IRET" && a.vector == nil && b.vector == nil },
             mend: { a, b in
                 a.state.general.rflags &= 0x3F_4FD7
                 b.state.general.rflags &= 0x3F_4FD7
             }),
        // SDM Vol. 3A, 3.4.5.1: they are set when the segment is loaded; IRET sets none here, CALL does before it faults.
        Self(what: "far transfers set accessed bits at another moment",
             applies: { one, _, _ in ["IRET", "RET far", "JMP far", "CALL far"].contains(one.name) },
             mend: { a, b in
                 setAccessed(&a)
                 setAccessed(&b)
             }),
        // SDM Vol. 3A, 7.2.3: in IA-32e mode the descriptors of the LDT and the TSS have 16 bytes.
        Self(what: "LTR and LLDT of compatibility mode read 8 bytes of the descriptor",
             applies: { one, a, b in
                 ["LTR", "LLDT"].contains(one.name) && one.mode != .long64 && a.vector == nil && b.vector == 13
             }),
        // SDM Vol. 3A, 2.5, and Vol. 2, MOV: #GP.
        Self(what: "MOV to CR0, CR4, DR4 and DR5 doesn't look at the upper half, and to CR4 not at what CPUID lacks",
             applies: { one, a, b in
                 ["MOV to CR0", "MOV to CR4", "MOV to DRn"].contains(one.name) && a.vector == nil && b.vector == 13
                     && (value(one) >> 32 != 0 || one.name == "MOV to CR4" && value(one) >> 11 != 0)
             }),
        // SDM Vol. 2, LGDT: the operand has six bytes, of which 16-bit operands use five.
        Self(what: "LGDT and LIDT of 16-bit operands read five bytes",
             applies: { one, a, b in
                 ["LGDT", "LIDT"].contains(one.name) && one.code[0] == 0x66 && one.mode != .long64 && a.vector == nil
                     && b.vector == 14
             }),
        // SDM Vol. 3A, 6.9: faults of the debugger come before those of the operand.
        Self(what: "MOV to DRn looks at the value before it looks at DR7.GD",
             applies: { one, a, b in one.name == "MOV to DRn" && a.vector == 13 && b.vector == 1 && value(one) >> 32 != 0 }),
        // SDM Vol. 2, INT n: it goes through the gate. Here some come back with a host's -ENOSYS in RAX, some as #GP.
        Self(what: "INT n goes to the host", applies: { one, _, _ in one.name == "INT n" }),
        // SDM Vol. 2, IRET and RET: data segments of an inner level are made null.
        Self(what: "returns to CPL 3 keep the kernel's data segments", applies: { _, a, b in isOuter(a) && isOuter(b) },
             mend: { a, b in
                 (a.state.es, a.state.ds, a.state.fs, a.state.gs) = (b.state.es, b.state.ds, b.state.fs, b.state.gs)
             }),
        // SDM Vol. 3A, 18.2.3: bits 0 to 3 may be cleared.
        Self(what: "#DB clears the lower bits of DR6", applies: { _, a, b in a.vector == 1 && b.vector == 1 },
             mend: { a, b in
                 a.state.debug.dr6 &= ~15
                 b.state.debug.dr6 &= ~15
             }),
        // SDM Vol. 2, MOV: #UD for CS, whatever the operand is.
        Self(what: "MOV to CS reads its operand first",
             applies: { one, a, b in one.name == "MOV to Sreg" && b.vector == 6 && [12, 13, 14].contains(a.vector) }),
        // SDM Vol. 3A, 12.12.4.
        Self(what: "any value goes into the PAT",
             applies: { one, a, b in
                 one.name == "WRMSR" && one.state.general.rcx & 0xFFFF_FFFF == 0x277 && a.exits.isEmpty && b.vector == 13
             }),
        // The emulator writes page by page. SDM Vol. 3A, 6.5: a fault leaves things as they were.
        Self(what: "a store has written what lies before the page that faults",
             applies: { _, a, b in a.vector == 14 && b.vector == 14 },
             mend: { a, b in
                 let end = Int(SystemLayout.data + 0x1000 - SystemLayout.start)
                 for i in (end - 16)..<end { a.memory[i] = b.memory[i] }
             }),
        // SDM Vol. 3A, 4.5.1: on processors with 57-bit linear addresses these accept them whatever CR4.LA57 is. Linux, since 6.13,
        // does the same where its processor has them.
        Self(what: "bases of descriptor tables, TSS and FS have 57 bits on processors that have LA57",
             applies: { one, a, b in
                 ["LTR", "LLDT", "LGDT", "LIDT", "WRMSR", "INVLPG", "WRFSBASE"].contains(one.name) && one.mode == .long64
                     && a.vector == nil && b.vector == 13 && hasLA57
             }),
        // The same, for what it makes of an address that isn't canonical.
        Self(what: "SYSENTER_ESP and SYSENTER_EIP have 57 bits on processors that have LA57", applies: { one, _, _ in one.name == "WRMSR" && hasLA57 },
             mend: { a, b in
                 for i in [1, 2] {
                     a.state.msrs[i] = UInt64(bitPattern: Int64(bitPattern: a.state.msrs[i] << 16) >> 16)
                     b.state.msrs[i] = UInt64(bitPattern: Int64(bitPattern: b.state.msrs[i] << 16) >> 16)
                 }
             }),
        // SDM Vol. 3A, 18.2.3: DR6.RTM can be cleared where CPUID has RTM, which a KVM may show in spite of the model.
        Self(what: "DR6.RTM is written", applies: { one, _, _ in one.name == "MOV to DRn" },
             mend: { a, b in
                 a.state.debug.dr6 |= 1 << 16
                 b.state.debug.dr6 |= 1 << 16
             }),
        // SDM Vol. 2, SYSEXIT: flags stay. There user mode has neither IOPL nor NT, which a fault's frame shows.
        Self(what: "SYSEXIT leads to user mode without IOPL and NT", applies: { one, _, _ in one.name == "SYSEXIT" },
             mend: { a, b in
                 let flags = Int(SystemLayout.innerStack - 0x18 - SystemLayout.start)
                 for outcome in [0, 1] {
                     var one = outcome == 0 ? a : b
                     one.state.general.rflags &= ~privilegeAndNesting
                     one.memory[flags + 1] &= 0x8F
                     if outcome == 0 { a = one } else { b = one }
                 }
             }),
    ]

    private static let hasLA57 = HostProcessor.says("57 bits virtual")
}
