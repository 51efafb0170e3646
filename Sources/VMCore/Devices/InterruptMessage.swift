/// How an interrupt message asks to be delivered: bits 10:8 of an LVT entry, an ICR or an I/O APIC redirection entry.
///
/// SDM Vol. 3A, 11.5.1 and 11.6.1; 82093AA data sheet, 3.2.4.
public enum DeliveryMode: UInt8, Codable, Sendable {
    case fixed = 0b000
    case lowestPriority = 0b001
    case smi = 0b010
    case reserved = 0b011
    case nmi = 0b100
    case initialise = 0b101
    case startUp = 0b110
    case extINT = 0b111

    /// The mode in bits 10:8 of `register`.
    @inlinable init(bits10to8 register: UInt64) {
        switch (register >> 8) & 0b111 {
        case 0b000: self = .fixed
        case 0b001: self = .lowestPriority
        case 0b010: self = .smi
        case 0b011: self = .reserved
        case 0b100: self = .nmi
        case 0b101: self = .initialise
        case 0b110: self = .startUp
        default: self = .extINT
        }
    }
}

/// What an I/O APIC sends to the local APICs when a pin asks for service.
public struct InterruptMessage: Equatable, Sendable {
    /// The 8-bit destination field of the redirection entry; 0xff is everyone.
    public var destination: UInt8
    /// True for the logical destination mode, false for the physical one.
    public var isLogical: Bool
    public var mode: DeliveryMode
    public var vector: UInt8
    public var isLevelTriggered: Bool

    public init(destination: UInt8, isLogical: Bool, mode: DeliveryMode, vector: UInt8, isLevelTriggered: Bool) {
        self.destination = destination
        self.isLogical = isLogical
        self.mode = mode
        self.vector = vector
        self.isLevelTriggered = isLevelTriggered
    }
}

/// A set of the 256 interrupt vectors: the shape of the local APIC's IRR, ISR and TMR (SDM Vol. 3A, 11.8.4).
public struct VectorSet: Codable, Equatable, Sendable {
    var bits0to63: UInt64 = 0
    var bits64to127: UInt64 = 0
    var bits128to191: UInt64 = 0
    var bits192to255: UInt64 = 0

    public init() {}

    /// The highest vector in the set, which is also the one of highest priority.
    public var highest: UInt8? {
        if bits192to255 != 0 { return UInt8(truncatingIfNeeded: 255 &- bits192to255.leadingZeroBitCount) }
        if bits128to191 != 0 { return UInt8(truncatingIfNeeded: 191 &- bits128to191.leadingZeroBitCount) }
        if bits64to127 != 0 { return UInt8(truncatingIfNeeded: 127 &- bits64to127.leadingZeroBitCount) }
        if bits0to63 != 0 { return UInt8(truncatingIfNeeded: 63 &- bits0to63.leadingZeroBitCount) }
        return nil
    }

    public subscript(vector: UInt8) -> Bool {
        get { quarter(vector >> 6) & (1 &<< UInt64(vector & 63)) != 0 }
        set {
            let bit: UInt64 = 1 &<< UInt64(vector & 63)
            switch vector >> 6 {
            case 0: bits0to63 = newValue ? bits0to63 | bit : bits0to63 & ~bit
            case 1: bits64to127 = newValue ? bits64to127 | bit : bits64to127 & ~bit
            case 2: bits128to191 = newValue ? bits128to191 | bit : bits128to191 & ~bit
            default: bits192to255 = newValue ? bits192to255 | bit : bits192to255 & ~bit
            }
        }
    }

    /// The 32 vectors from `32 * index` on, as the guest reads them; only the low three bits of `index` count.
    func register(_ index: UInt8) -> UInt32 {
        UInt32(truncatingIfNeeded: quarter((index >> 1) & 3) &>> (index & 1 == 0 ? 0 : 32))
    }

    private func quarter(_ index: UInt8) -> UInt64 {
        switch index {
        case 0: bits0to63
        case 1: bits64to127
        case 2: bits128to191
        default: bits192to255
        }
    }
}
