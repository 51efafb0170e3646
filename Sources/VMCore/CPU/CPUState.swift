/// The general registers, the instruction pointer and the flags.
public struct GeneralRegisters: Equatable, Sendable {
    public var rax: UInt64 = 0
    public var rbx: UInt64 = 0
    public var rcx: UInt64 = 0
    public var rdx: UInt64 = 0
    public var rsi: UInt64 = 0
    public var rdi: UInt64 = 0
    public var rsp: UInt64 = 0
    public var rbp: UInt64 = 0
    public var r8: UInt64 = 0
    public var r9: UInt64 = 0
    public var r10: UInt64 = 0
    public var r11: UInt64 = 0
    public var r12: UInt64 = 0
    public var r13: UInt64 = 0
    public var r14: UInt64 = 0
    public var r15: UInt64 = 0
    public var rip: UInt64 = 0
    public var rflags: UInt64 = 2

    public init() {}

    /// A sum over RAX to R15 that differs between nearly all values of them, and costs a few nanoseconds. Never 0.
    ///
    /// Traces hold it, so that it stays what it is.
    public var sum: UInt64 {
        Self.sum(rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15)
    }

    /// The same of registers in the order of their numbers. The factors are the powers of one that is odd and has its bits
    /// well mixed (2⁶⁴ divided by the golden ratio), so that no multiplication waits for another.
    @inline(__always)
    static func sum(_ r0: UInt64, _ r1: UInt64, _ r2: UInt64, _ r3: UInt64, _ r4: UInt64, _ r5: UInt64, _ r6: UInt64,
                    _ r7: UInt64, _ r8: UInt64, _ r9: UInt64, _ r10: UInt64, _ r11: UInt64, _ r12: UInt64, _ r13: UInt64,
                    _ r14: UInt64, _ r15: UInt64) -> UInt64 {
        let lower = (r0 &* power(1) &+ r1 &* power(2)) &+ (r2 &* power(3) &+ r3 &* power(4))
            &+ (r4 &* power(5) &+ r5 &* power(6)) &+ (r6 &* power(7) &+ r7 &* power(8))
        let upper = (r8 &* power(9) &+ r9 &* power(10)) &+ (r10 &* power(11) &+ r11 &* power(12))
            &+ (r12 &* power(13) &+ r13 &* power(14)) &+ (r14 &* power(15) &+ r15 &* power(16))
        return max(1, lower &+ upper)
    }

    @inline(__always)
    private static func power(_ n: Int) -> UInt64 {
        var value: UInt64 = 1
        for _ in 0..<n { value = value &* 0x9E37_79B9_7F4A_7C15 }
        return value
    }
}

/// Bits of RFLAGS. Source: Intel SDM Vol. 1, 3.4.3.
public enum RFlags {
    public static let reservedOne: UInt64 = 1 << 1
    public static let auxiliary: UInt64 = 1 << 4
    public static let trap: UInt64 = 1 << 8
    public static let interrupt: UInt64 = 1 << 9
    public static let overflow: UInt64 = 1 << 11
    public static let resume: UInt64 = 1 << 16
}

/// A segment register with its descriptor cache. Source: Intel SDM Vol. 3A, 3.4.3.
public struct SegmentRegister: Equatable, Sendable {
    public var selector: UInt16 = 0
    public var base: UInt64 = 0
    /// The last valid offset, in bytes, granularity applied.
    public var limit: UInt32 = 0
    /// Bits 0–3 type, 4 S, 5–6 DPL, 7 present, 8 AVL, 9 L, 10 D/B, 11 granularity, 12 unusable.
    public var attributes: UInt16 = 0

    public static let unusable: UInt16 = 1 << 12

    public init(selector: UInt16 = 0, base: UInt64 = 0, limit: UInt32 = 0, attributes: UInt16 = 0) {
        self.selector = selector
        self.base = base
        self.limit = limit
        self.attributes = attributes
    }

    public var dpl: UInt8 { UInt8(attributes >> 5 & 3) }

    /// What an unusable segment's cache holds besides selector and base differs by processor and means nothing.
    var canonical: Self {
        attributes & Self.unusable == 0
            ? self : Self(selector: selector, base: base, limit: 0, attributes: Self.unusable)
    }
}

public struct DescriptorTable: Equatable, Sendable {
    public var base: UInt64 = 0
    public var limit: UInt16 = 0

    public init(base: UInt64 = 0, limit: UInt16 = 0) {
        self.base = base
        self.limit = limit
    }
}

public struct ControlRegisters: Equatable, Sendable {
    public var cr0: UInt64 = 0
    public var cr2: UInt64 = 0
    public var cr3: UInt64 = 0
    public var cr4: UInt64 = 0
    /// The task priority class, 0–15.
    public var cr8: UInt64 = 0
    public var efer: UInt64 = 0
    public var xcr0: UInt64 = 1

    public init() {}
}

public struct DebugRegisters: Equatable, Sendable {
    public var address: SIMD4<UInt64> = .zero
    public var dr6: UInt64 = 0xFFFF_0FF0
    public var dr7: UInt64 = 0x400

    public init() {}

    /// Whether the guest uses a breakpoint of its own.
    public var isActive: Bool { dr7 & 0xFF != 0 }
}

/// x87, SSE and AVX registers.
///
/// The last-instruction pointers (FIP, FDP, FOP) are part of the state only on processors that keep them: AMD's don't save them
/// unless an exception is pending, so that a host's context switch changes them. Source: AMD APM Vol. 2, 11.4.4.
public struct FloatingPointState: Equatable, Sendable {
    public var controlWord: UInt16 = 0x37F
    public var statusWord: UInt16 = 0
    /// A bit a register, 1 where it is in use (the abridged form of FXSAVE).
    public var tags: UInt8 = 0
    public var mxcsr: UInt32 = 0x1F80
    /// 8 registers of 10 bytes, ST(0) first.
    public var st = [UInt8](repeating: 0, count: 80)
    /// 16 registers of 16 bytes.
    public var xmm = [UInt8](repeating: 0, count: 256)
    /// The upper halves of YMM0–YMM15, 16 bytes each.
    public var ymmHigh = [UInt8](repeating: 0, count: 256)
    /// All 0 where the processor doesn't keep it: `ProcessorProfile.keepsLastInstruction`.
    public var last = LastInstruction()

    public init() {}
}

/// The last x87 instruction that isn't one of control.
public struct LastInstruction: Equatable, Sendable {
    public var address: UInt64 = 0
    /// The address of its operand.
    public var operand: UInt64 = 0
    /// 11 bits.
    public var opcode: UInt16 = 0
}

/// Exceptions, interrupts and their blocking, between two instructions.
///
/// Source: Linux, Documentation/virt/kvm/api.rst, KVM_GET_VCPU_EVENTS.
public struct EventState: Equatable, Sendable {
    public var exceptionInjected = false
    public var exceptionPending = false
    public var exceptionVector: UInt8 = 0
    public var exceptionHasErrorCode = false
    public var exceptionErrorCode: UInt32 = 0
    public var exceptionHasPayload = false
    public var exceptionPayload: UInt64 = 0
    public var interruptInjected = false
    public var interruptVector: UInt8 = 0
    public var interruptSoft = false
    /// Bit 0: MOV SS, bit 1: STI holds interrupts off for one instruction.
    public var interruptShadow: UInt8 = 0
    public var nmiInjected = false
    public var nmiPending: UInt8 = 0
    public var nmiMasked = false
    public var tripleFaultPending = false
    /// Whether the vCPU waits after HLT inside the engine.
    public var halted = false

    public init() {}
}

/// The registers that an engine hands out cheaply: general, segment and control registers. A plain value without
/// storage of its own on the heap.
public struct CoreRegisters: Equatable, Sendable {
    public var general = GeneralRegisters()
    public var es = SegmentRegister()
    public var cs = SegmentRegister()
    public var ss = SegmentRegister()
    public var ds = SegmentRegister()
    public var fs = SegmentRegister()
    public var gs = SegmentRegister()
    public var ldtr = SegmentRegister()
    public var tr = SegmentRegister()
    public var gdtr = DescriptorTable()
    public var idtr = DescriptorTable()
    public var control = ControlRegisters()

    public init() {}

    /// In 64-bit mode, what lies behind a null SS apart from its privilege level is used for nothing and can't be seen.
    /// Processors leave different things there: the segment that was, one without a descriptor, a flat one. Engines hand
    /// out this one. Source: Intel SDM Vol. 3A, 3.4.4 and 5.8.5 (an interrupt to a lower level loads SS with null).
    ///
    /// An LDT of one byte, behind a null LDTR, has no descriptor, whether the register is usable or not.
    mutating func makeNullSegmentsCanonical() {
        if ldtr.selector & ~3 == 0, ldtr.limit == 0 {
            ldtr = SegmentRegister(selector: ldtr.selector, base: ldtr.base, attributes: SegmentRegister.unusable)
        }
        guard control.efer & (1 << 10) != 0, cs.attributes & (1 << 9) != 0, ss.selector & ~3 == 0 else { return }
        ss = SegmentRegister(selector: ss.selector, attributes: SegmentRegister.unusable | ss.attributes & 0x60)
    }

    /// The current privilege level: the DPL of SS. Source: Intel SDM Vol. 3A, 5.5.
    public var cpl: UInt8 { control.cr0 & 1 == 0 ? 0 : ss.dpl }

    /// The linear address of the next instruction.
    public var linearRIP: UInt64 {
        let linear = cs.base &+ general.rip
        return control.efer & (1 << 10) != 0 ? linear : linear & 0xFFFF_FFFF
    }
}

/// The complete architectural state of one vCPU, the same in every engine.
@dynamicMemberLookup
public struct CPUState: Equatable, Sendable {
    public var core = CoreRegisters()
    public var debug = DebugRegisters()
    public var floatingPoint = FloatingPointState()
    /// Values of `CPUState.msrIndices`, in that order.
    public var msrs = [UInt64](repeating: 0, count: CPUState.msrIndices.count)
    public var events = EventState()
    /// The timestamp counter where the engine counts it; nil where each read of it is an exit, or can't be recorded.
    public var timestampCounter: UInt64?

    /// The MSRs that are state of the vCPU and that guests reach without the monitor, EFER and the segment bases aside.
    public static let msrIndices: [UInt32] = [
        0x174,  // IA32_SYSENTER_CS
        0x175,  // IA32_SYSENTER_ESP
        0x176,  // IA32_SYSENTER_EIP
        0x277,  // IA32_PAT
        0xC000_0081,  // IA32_STAR
        0xC000_0082,  // IA32_LSTAR
        0xC000_0083,  // IA32_CSTAR
        0xC000_0084,  // IA32_FMASK
        0xC000_0102,  // IA32_KERNEL_GS_BASE
        0xC000_0103,  // IA32_TSC_AUX
    ]

    public init() {}

    /// The state after power-on. Source: Intel SDM Vol. 3A, table 9-1.
    public static func reset() -> Self {
        var state = Self()
        state.general.rip = 0xFFF0
        state.general.rdx = 0x600
        let data = SegmentRegister(limit: 0xFFFF, attributes: 0x93)
        state.es = data
        state.ss = data
        state.ds = data
        state.fs = data
        state.gs = data
        state.cs = SegmentRegister(selector: 0xF000, base: 0xFFFF_0000, limit: 0xFFFF, attributes: 0x9B)
        state.ldtr = SegmentRegister(limit: 0xFFFF, attributes: 0x82)
        state.tr = SegmentRegister(limit: 0xFFFF, attributes: 0x8B)
        state.gdtr = DescriptorTable(base: 0, limit: 0xFFFF)
        state.idtr = DescriptorTable(base: 0, limit: 0xFFFF)
        state.control.cr0 = 0x6000_0010
        state.msrs[3] = 0x0007_0406_0007_0406
        return state
    }

    public subscript<T>(dynamicMember path: WritableKeyPath<CoreRegisters, T>) -> T {
        get { core[keyPath: path] }
        set { core[keyPath: path] = newValue }
    }

    public subscript<T>(dynamicMember path: KeyPath<CoreRegisters, T>) -> T { core[keyPath: path] }
}
