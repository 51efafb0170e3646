/// What processors do in different ways, or leave undefined, and guests can see: measured where a trace is recorded, kept in it,
/// and followed by the soft engine.
///
/// As it is made, and where a trace says nothing: the ways of AMD's processors, which vmrr had before it measured.
public struct ProcessorProfile: Codable, Equatable, Sendable {
    public var undefinedFlags = UndefinedFlags()
    /// The same for 64-bit code at CPL 3 where it differs: some KVMs emulate all other code.
    public var userFlags: UndefinedFlags?
    /// What CPUID answers whatever the model says, leaf by leaf: there are KVMs that show a guest the processor's own features. Nil
    /// where all answers are the model's.
    public var ownFeatures: [CPUIDEntry]?
    /// Whether BT, BTS, BTR and BTC leave OF and AF to chance: QEMU's emulated processors clear both where they translated the
    /// instruction together with the one before that set the flags, and keep both where something came between, such as an
    /// interrupt of the host's.
    public var bitTestsVary = false
    /// The bits that MXCSR may have, as FXSAVE stores them; nil: as the vendor's processors do.
    public var mxcsrMask: UInt32?
    /// Whether SYSENTER_ESP and SYSENTER_EIP keep their lower halves only, as KVM has it on AMD processors.
    public var halvesSysenter = false
    /// The vectors of faults that push their flags without RF, a bit each. Processors set RF with each fault (Intel SDM Vol. 3B,
    /// 18.3.1.1), QEMU's emulated ones with none; but KVM does with those that it injects itself, such as #UD.
    public var faultsWithoutResume: UInt32 = 0
    /// Whether far transfers and interrupts set the accessed bits of the descriptors that they load, as processors do and
    /// QEMU's emulated ones don't. Source: Intel SDM Vol. 3A, 3.4.5.1.
    public var transfersSetAccessed = true
    /// What FXSAVE and XSAVE leave as it was in the part of their area that the x87 has, a bit each: `UnwrittenBySave`.
    public var unwrittenBySave: UInt8 = 0
    /// Whether FXSAVE and its kind store where the last x87 instruction was, as Intel's processors do. AMD's do so only while an
    /// exception waits, and KVM loses it there. Source: AMD APM Vol. 2, 11.4.4.
    public var keepsLastInstruction = false
    /// FXSAVE64 and FXRSTOR64 outside 64-bit code of CPL 3 have the lower half of it alone: KVM's emulator has no others.
    public var halvesLastInstruction = false
    /// Whether an instruction that modifies memory faults as a read where it can't even read there, before it faults as a
    /// write: QEMU's emulated processors load and store one after the other. Others make one access that writes. Source for
    /// the error code: Intel SDM Vol. 3A, 4.7.
    public var readsBeforeModifying = false

    public init() {}

    /// Processors whose ways are known without trying them out.
    public enum Known: String, CaseIterable, Sendable {
        /// AMD's of family 19h.
        case amd
        /// Intel's of family 6, model 207.
        case intel
        /// What QEMU 7.2 emulates, with its own KVM's ways.
        case qemu
    }

    public init(of known: Known) {
        switch known {
        case .amd: undefinedFlags.scanSetsResult = true
        case .intel:
            undefinedFlags.multiplicationSetsResult = true
            undefinedFlags.multiplicationClearsZero = true
            undefinedFlags.divisionKeepsAll = true
            undefinedFlags.shiftSetsAuxiliary = false
            undefinedFlags.shiftsOverflowAtOnce = true
            undefinedFlags.rotationsKeepOverflow = true
            undefinedFlags.doubleShiftsReturn = true
            undefinedFlags.bitManipulationClears = true
            undefinedFlags.scanSetsResult = true
            mxcsrMask = 0xFFFF
            keepsLastInstruction = true
        case .qemu:
            undefinedFlags.multiplicationSetsResult = true
            undefinedFlags.divisionKeepsAll = true
            undefinedFlags.shiftSetsAuxiliary = false
            undefinedFlags.doubleShiftsReturn = true
            undefinedFlags.scanTestsSource = true
            bitTestsVary = true
            mxcsrMask = 0xFFFF
            halvesSysenter = true
            faultsWithoutResume = ~(1 << 6)
            transfersSetAccessed = false
            unwrittenBySave = UnwrittenBySave.opcode | UnwrittenBySave.registerPadding
            readsBeforeModifying = true
        }
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        undefinedFlags = try values.value(.undefinedFlags, undefinedFlags)
        userFlags = try values.decodeIfPresent(UndefinedFlags.self, forKey: .userFlags)
        ownFeatures = try values.decodeIfPresent([CPUIDEntry].self, forKey: .ownFeatures)
        bitTestsVary = try values.value(.bitTestsVary, bitTestsVary)
        mxcsrMask = try values.decodeIfPresent(UInt32.self, forKey: .mxcsrMask)
        halvesSysenter = try values.value(.halvesSysenter, halvesSysenter)
        faultsWithoutResume = try values.value(.faultsWithoutResume, faultsWithoutResume)
        transfersSetAccessed = try values.value(.transfersSetAccessed, transfersSetAccessed)
        unwrittenBySave = try values.value(.unwrittenBySave, unwrittenBySave)
        keepsLastInstruction = try values.value(.keepsLastInstruction, keepsLastInstruction)
        halvesLastInstruction = try values.value(.halvesLastInstruction, halvesLastInstruction)
        readsBeforeModifying = try values.value(.readsBeforeModifying, readsBeforeModifying)
    }
}

/// Bytes of FXSAVE's area that some processors don't write: processors write zeros to those without a meaning, QEMU's
/// emulated ones nothing. Offsets are those of Intel SDM Vol. 1, 10.5.1.
public enum UnwrittenBySave {
    /// Byte 5, behind the tags.
    public static let tagPadding: UInt8 = 1 << 0
    /// Bytes 6 and 7: FOP.
    public static let opcode: UInt8 = 1 << 1
    /// Bytes 8 to 23: FIP and FDP.
    public static let pointers: UInt8 = 1 << 2
    /// The six bytes behind each of the eight registers.
    public static let registerPadding: UInt8 = 1 << 3
}

extension KeyedDecodingContainer {
    /// What is under a key, or what it means that a trace doesn't mention it.
    func value<T: Decodable>(_ key: Key, _ fallback: T) throws -> T { try decodeIfPresent(T.self, forKey: key) ?? fallback }
}
