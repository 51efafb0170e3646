/// The soft engine's processor: every field that the run loop touches, in one block of raw memory.
///
/// The first 256 bytes are addressed by byte offset (`Slot`), so that AL, AH, AX, EAX and RAX are loads and stores of
/// different widths at an offset that the decoder has worked out. Little-endian hosts only, as all x86-64 hosts are.
struct RegisterFile {
    // RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15: the order of their encoding.
    var gpr: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64,
              UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)
        = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    /// Always 0: the base or index that an address lacks.
    var zero: UInt64 = 0
    var t0: UInt64 = 0
    var t1: UInt64 = 0
    var t2: UInt64 = 0
    var t3: UInt64 = 0
    /// While a block runs, the RIP at which it starts; each micro-op knows its distance from there.
    var rip: UInt64 = 0

    // The arithmetic flags of the last instruction that set them, not yet worked out:
    /// the result, sign-extended: ZF is `result == 0`;
    var result: UInt64 = 1
    /// the carries out of each bit: bit 63 is CF, bit 62 differs from it where OF is set, bit 3 is AF;
    var carries: UInt64 = 0
    /// what SF (bit 63) and PF (bits 0–7) need beyond the result: nonzero only after flags were loaded as such.
    var delta: UInt64 = 0
    /// The other flags, bit 1 included.
    var flags: UInt64 = 2

    /// ES, CS, SS, DS, FS, GS, and two that are always 0: "no base" and "no base, but a stack access".
    var segments: (Segment, Segment, Segment, Segment, Segment, Segment, Segment, Segment)
        = (Segment(), Segment(), Segment(), Segment(), Segment(), Segment(), Segment(), Segment())
    var ldtr = Segment()
    var tr = Segment()
    var gdtr = DescriptorTable()
    var idtr = DescriptorTable()
    var cr0: UInt64 = 0x10
    var cr2: UInt64 = 0
    var cr3: UInt64 = 0
    var cr4: UInt64 = 0
    var cr8: UInt64 = 0
    var efer: UInt64 = 0
    var xcr0: UInt64 = 1
    /// The page directory pointers, which PAE paging loads with CR3.
    var pdpte: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    var dr: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    var dr6: UInt64 = 0xFFFF_0FF0
    var dr7: UInt64 = 0x400
    /// SYSENTER_CS, _ESP, _EIP, PAT, STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, TSC_AUX: as `CPUState.msrIndices`.
    var msrs: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)
        = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

    // What follows from the registers; `Core.updateMode` keeps it.
    var cpl: UInt8 = 0
    /// Size of addresses of stack accesses: 0xFFFF, 0xFFFFFFFF or all ones.
    var stackMask: UInt64 = 0xFFFF
    /// What RIP is cut to where code goes on in order: EIP has its 32 bits in 16-bit code too.
    var ripMask: UInt64 = 0xFFFF_FFFF
    var linearMask: UInt64 = 0xFFFF_FFFF
    /// The base of CS, 0 in 64-bit code.
    var codeBase: UInt64 = 0
    /// What decoding depends on; see `ModeKey`.
    var mode: UInt32 = 0
    /// Whether data accesses have to be aligned: CR0.AM, RFLAGS.AC and CPL 3.
    var checksAlignment = false
    var tlb: UnsafeMutablePointer<TLBEntry>
    var codeTLB: UnsafeMutablePointer<CodeTLBEntry>

    // The run loop's own.
    /// RIP after an instruction that ends its block.
    var next: UInt64 = 0
    var block: UnsafeMutablePointer<Block>?
    var op: UnsafeMutablePointer<MicroOp>
    /// Instructions retired. Blocks are counted when they are entered.
    var retired: UInt64 = 0
    /// No block is entered that would bring `retired` above this.
    var sliceEnd: UInt64 = 0
    /// Counts what makes remembered blocks doubtful: translations dropped, code written, breakpoints moved.
    var generation: UInt64 = 1
    /// Which kind of block is built and looked up: 0, or see `Variant`.
    var breakpoint: UInt64 = 0
    var hasBreakpoint = false
    /// These bits of `GeneralRegisters.sum`, at the arrivals at the breakpoint that count; without any bits all do.
    var wantedSum: UInt64 = 0
    var wantedBits: UInt64 = 0
    /// Arrivals that didn't count, and the block that comes after one.
    var passedArrivals = 0
    var passing = JumpEntry()
    /// Whether the loop runs a single instruction, which may make exits.
    var single = false
    var jumps: UnsafeMutablePointer<JumpEntry>
    /// Where `loadToModify` found its operand; nil: to be stored the slow way, at `modifyAddress`.
    var modifyHost: UnsafeMutableRawPointer?
    var modifyAddress: UInt64 = 0

    // Events between instructions.
    /// Bit 0: MOV SS, bit 1: STI.
    var shadow: UInt8 = 0
    /// Breakpoints that the instruction under way has met, as in DR6.
    var pendingBreakpoints: UInt64 = 0
    var nmiPending: UInt8 = 0
    var nmiMasked = false
    var halted = false
    var queued = QueuedEvent()

    // Exits of the instruction under way.
    var exit = PendingExit()
    /// Answers already given to this instruction, in order, and how many it has taken since it was started over.
    var answers: UnsafeMutablePointer<UInt64>
    var answerCount = 0
    var answersTaken = 0
    /// Whether the answer to an MSR access is a fault.
    var answerFaulted = false
    /// The guest lowered CR8: interrupts that it held off may enter.
    var loweredPriority = false
    /// Writes that leave the guest once the instruction is complete.
    var outgoing: UnsafeMutablePointer<PendingExit>
    var outgoingCount = 0
    var outgoingSent = 0
    /// The elements of a string port read.
    var portData: UnsafeMutableRawPointer
    var portDataElements: UInt32 = 0

    // Memory.
    var ram: UnsafeMutableRawPointer
    var regions: UnsafeMutablePointer<RAMRegion>
    var regionCount = 0
    /// For each page of the memory file, which 64-byte lines hold decoded code.
    var codeLines: UnsafeMutablePointer<UInt64>
    /// A bit for each page of the memory file that was written since the engine was last asked.
    var written: UnsafeMutablePointer<UInt64>
    /// The instruction that is being watched; nil where nobody watches.
    var watched: UnsafeMutablePointer<WatchedInstruction>?
    var cache: UnsafeMutablePointer<BlockCache>
    var cpuid: UnsafeMutablePointer<CPUIDTable>
    var tables: UnsafeMutablePointer<TLBEntry>
    var codeTables: UnsafeMutablePointer<CodeTLBEntry>
    var trapped: TrappedInstructions = []
    var profile = ProcessorProfile()
    /// The profile's for the code that is executed.
    var undefinedFlags = UndefinedFlags()
    /// The profile's, or the vendor's.
    var mxcsrMask: UInt32 = 0xFFFF
    /// Whether the fault that is delivered next comes from the monitor, as a KVM injects it, and not from the processor.
    var isMonitorsFault = false
    /// Whether RDTSC and RDTSCP return the instructions retired and `counterOffset`; else they are exits.
    var countsTimestamps = false
    var counterOffset: UInt64 = 0
    let floatingPoint = FloatingPointFile()
    /// What the last `unsupported` trap is about.
    var unsupportedBytes: (UInt64, UInt64) = (0, 0)
    var unsupportedCount = 0
}

/// A segment register with its descriptor cache. `attributes` as in `SegmentRegister`.
struct Segment {
    var base: UInt64 = 0
    var limit: UInt32 = 0
    var selector: UInt16 = 0
    var attributes: UInt16 = 0

    var isUsable: Bool { attributes & SegmentRegister.unusable == 0 }
    var dpl: UInt8 { UInt8(attributes >> 5 & 3) }
    var type: UInt16 { attributes & 15 }
}

/// Byte offsets in the register file.
enum Slot {
    static let zero: UInt8 = 128
    static let t0: UInt8 = 136
    static let t1: UInt8 = 144
    static let rip: UInt8 = 168
    static let segments = 208

    static func gpr(_ number: Int) -> UInt8 { UInt8(8 * number) }
}

enum SegmentIndex {
    static let es: UInt8 = 0
    static let cs: UInt8 = 1
    static let ss: UInt8 = 2
    static let ds: UInt8 = 3
    static let fs: UInt8 = 4
    static let gs: UInt8 = 5
    /// No base and no check: data and stack segments in 64-bit code, flat ones in 32-bit code.
    static let none: UInt8 = 6
    static let noneStack: UInt8 = 7
}

/// Numbers of general registers.
enum GPR {
    static let rax = 0, rcx = 1, rdx = 2, rbx = 3, rsp = 4, rbp = 5, rsi = 6, rdi = 7, r11 = 11
}

/// Bits of `RegisterFile.mode`.
enum ModeKey {
    static let long64: UInt32 = 1
    /// Operands and addresses default to 32 bits.
    static let code32: UInt32 = 2
    /// ES, CS, SS and DS span 4 GiB from 0 and allow everything.
    static let flat: UInt32 = 4
    static let stack32: UInt32 = 8
    static let user: UInt32 = 16
    /// Real or virtual-8086 mode.
    static let real: UInt32 = 32
}

/// An event that enters before the next instruction.
struct QueuedEvent {
    enum Kind: UInt8 {
        case none, interrupt, nmi, exception
    }
    var kind = Kind.none
    var vector: UInt8 = 0
    /// An interrupt made by an instruction, its return address already set.
    var soft = false
    var hasErrorCode = false
    var errorCode: UInt32 = 0
}

struct PendingExit {
    var kind = EventKind.halt
    var size: UInt8 = 0
    var count: UInt32 = 1
    var address: UInt64 = 0
    var value: UInt64 = 0
    /// Whether the instruction waits for a value and is started over with it.
    var wantsAnswer = false
}

/// A run of RAM, by page number.
struct RAMRegion {
    var firstPage: UInt64
    var pages: UInt64
    var filePage: UInt64
}

/// What ends the run of micro-ops before its time.
struct Trap: Error {
    enum Kind: UInt8 {
        case exception
        /// A non-canonical address: #GP, or #SS for stack accesses.
        case nonCanonical
        /// The instruction waits for an answer.
        case exit
        /// The instruction has to be started over by itself: it reaches a device.
        case again
        case shutdown
        case unsupported
    }
    var kind: Kind
    var vector: UInt8 = 0
    var hasErrorCode = false
    var errorCode: UInt32 = 0

    static func exception(_ vector: UInt8) -> Trap { Trap(kind: .exception, vector: vector) }
    static func exception(_ vector: UInt8, code: UInt32) -> Trap {
        Trap(kind: .exception, vector: vector, hasErrorCode: true, errorCode: code)
    }
    static let undefined = Trap.exception(Vector.ud)
    static let protection = Trap.exception(Vector.gp, code: 0)
    static let again = Trap(kind: .again)
    static let exit = Trap(kind: .exit)
    static let unsupported = Trap(kind: .unsupported)
}

enum Vector {
    static let de: UInt8 = 0, db: UInt8 = 1, nmi: UInt8 = 2, bp: UInt8 = 3, of: UInt8 = 4, br: UInt8 = 5, ud: UInt8 = 6
    static let nm: UInt8 = 7, df: UInt8 = 8, ts: UInt8 = 10, np: UInt8 = 11, ss: UInt8 = 12, gp: UInt8 = 13
    static let pf: UInt8 = 14, mf: UInt8 = 16, ac: UInt8 = 17, xm: UInt8 = 19
}

/// The processor as its instructions see it: a pointer to the register file.
///
/// Invariant: the file outlives every copy; `SoftEngine` owns both.
struct Core {
    let file: UnsafeMutablePointer<RegisterFile>
    let raw: UnsafeMutableRawPointer

    init(_ file: UnsafeMutablePointer<RegisterFile>) {
        self.file = file
        raw = UnsafeMutableRawPointer(file)
    }

    var s: RegisterFile {
        @inline(__always) unsafeAddress { UnsafePointer(file) }
        @inline(__always) nonmutating unsafeMutableAddress { file }
    }

    // MARK: Registers

    @inline(__always)
    func reg<T: Word>(_ slot: UInt8, _ type: T.Type) -> T { raw.load(fromByteOffset: Int(slot), as: T.self) }

    /// A 32-bit result clears the upper half. Source: Intel SDM Vol. 1, 3.4.1.1.
    @inline(__always)
    func setReg<T: Word>(_ slot: UInt8, _ value: T) {
        if MemoryLayout<T>.size == 4 {
            raw.storeBytes(of: UInt64(truncatingIfNeeded: value), toByteOffset: Int(slot), as: UInt64.self)
        } else {
            raw.storeBytes(of: value, toByteOffset: Int(slot), as: T.self)
        }
    }

    @inline(__always) func gpr(_ number: Int) -> UInt64 { raw.load(fromByteOffset: 8 * number, as: UInt64.self) }
    @inline(__always)
    func setGPR(_ number: Int, _ value: UInt64) {
        raw.storeBytes(of: value, toByteOffset: 8 * number, as: UInt64.self)
    }
    /// Replaces the bits of a register that `mask` holds; a 32-bit mask clears the upper half.
    @inline(__always)
    func setGPR(_ number: Int, _ value: UInt64, mask: UInt64) {
        setGPR(number, mask == 0xFFFF ? gpr(number) & ~mask | value & mask : value & mask)
    }

    func segment(_ index: UInt8) -> UnsafeMutablePointer<Segment> {
        (raw + Slot.segments).assumingMemoryBound(to: Segment.self) + Int(index)
    }

    @inline(__always)
    func segmentBase(_ index: UInt8) -> UInt64 {
        raw.load(fromByteOffset: Slot.segments + 16 * Int(index), as: UInt64.self)
    }

    // MARK: Modes

    var isProtected: Bool { s.cr0 & 1 != 0 }
    var isVirtual8086: Bool { s.flags & Flag.vm != 0 }
    var isRealOrV86: Bool { !isProtected || isVirtual8086 }
    var isLong: Bool { s.efer & 1 << 10 != 0 }
    var is64: Bool { s.mode & ModeKey.long64 != 0 }

    /// Works out everything that depends on control and segment registers and on CPL.
    func updateMode() {
        let cs = segment(SegmentIndex.cs).pointee
        let ss = segment(SegmentIndex.ss).pointee
        if !isProtected {
            s.cpl = 0
        } else if isVirtual8086 {
            s.cpl = 3
        } else {
            s.cpl = ss.dpl
        }
        s.undefinedFlags = s.profile.undefinedFlags
        var mode: UInt32 = 0
        if isLong && cs.attributes & 1 << 9 != 0 {
            mode = ModeKey.long64
            if s.cpl == 3, let flags = s.profile.userFlags { s.undefinedFlags = flags }
            s.stackMask = .max
            s.ripMask = .max
            s.linearMask = .max
            s.codeBase = 0
        } else {
            if cs.attributes & 1 << 10 != 0 { mode |= ModeKey.code32 }
            if ss.attributes & 1 << 10 != 0 { mode |= ModeKey.stack32 }
            s.stackMask = mode & ModeKey.stack32 != 0 ? 0xFFFF_FFFF : 0xFFFF
            s.ripMask = 0xFFFF_FFFF
            s.linearMask = 0xFFFF_FFFF
            s.codeBase = cs.base
            if isFlat(cs, code: true) && isFlat(ss, code: false) && isFlat(segment(SegmentIndex.ds).pointee, code: false)
                && isFlat(segment(SegmentIndex.es).pointee, code: false) {
                mode |= ModeKey.flat
            }
            if isRealOrV86 { mode |= ModeKey.real }
        }
        if s.cpl == 3 { mode |= ModeKey.user }
        s.mode = mode
        selectTLB()
    }

    private func isFlat(_ segment: Segment, code: Bool) -> Bool {
        guard segment.base == 0, segment.limit == .max, segment.isUsable else { return false }
        return code ? segment.type & 0xA == 0xA : segment.type & 0xE == 2
    }

    /// Kinds of data access that have translations of their own: supervisor, supervisor that SMAP keeps from user
    /// pages, user. User accesses that have to be aligned find a table without any, so that each goes the slow way, where
    /// it is checked.
    func selectTLB() {
        let smap = s.cr4 & 1 << 21 != 0 && s.flags & Flag.ac == 0
        s.checksAlignment = s.cpl == 3 && s.flags & Flag.ac != 0 && s.cr0 & 1 << 18 != 0
        let table = s.checksAlignment ? TLB.tables : s.cpl == 3 ? 2 : smap ? 1 : 0
        s.tlb = s.tables + table * TLB.entries
        s.codeTLB = s.codeTables + (s.cpl == 3 ? TLB.codeEntries : 0)
    }
}

/// The widths of integer operands.
protocol Word: FixedWidthInteger, UnsignedInteger {}
extension UInt8: Word {}
extension UInt16: Word {}
extension UInt32: Word {}
extension UInt64: Word {}

extension Word {
    @inline(__always) static var bits: UInt64 { UInt64(MemoryLayout<Self>.size * 8) }
    @inline(__always) static var bytes: UInt64 { UInt64(MemoryLayout<Self>.size) }
    /// Sign-extended to 64 bits.
    @inline(__always) var extended: UInt64 {
        UInt64(bitPattern: Int64(bitPattern: UInt64(truncatingIfNeeded: self) << (64 - Self.bits)) >> Int64(64 - Self.bits))
    }
    @inline(__always) var isNegative: Bool { self >> Self(Self.bits - 1) != 0 }
}
