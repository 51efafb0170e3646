/// The I/O APIC: 24 pins, each with a redirection entry that says what message to send.
///
/// Intel 82093AA data sheet (290566), section 3, with the EOI register of version 0x20 (ICH). Pin levels are logical:
/// true is asserted, whatever the polarity bit says, as in QEMU and KVM; the bit is kept for the guest to read.
/// Messages for fixed and lowest-priority delivery may be level-triggered; NMI acts on edges, SMI and INIT on nothing.
/// ExtINT is no message: `InterruptFabric` looks at the entry of pin 0, where a PC's 8259s are.
/// The platform takes messages with `requests`, `message(for:)` and `finish(_:accepted:)`.
public struct IOAPIC: Device {
    public static let pinCount = 24
    static let pinMask: UInt32 = 0x00ff_ffff
    public static let defaultAddress = GuestPhysicalAddress(0xfec0_0000)
    public static let pageSize: UInt64 = 0x1000

    /// Offsets in the page (data sheet, 3.1).
    enum Offset {
        static let registerSelect: UInt32 = 0x00
        static let window: UInt32 = 0x10
        static let endOfInterrupt: UInt32 = 0x40
    }

    /// Indirect registers (data sheet, 3.2).
    enum Register {
        static let id: UInt8 = 0x00
        static let version: UInt8 = 0x01
        static let arbitration: UInt8 = 0x02
        static let redirectionTable: UInt8 = 0x10
        static let end: UInt8 = redirectionTable + 2 * 24
    }

    static let version: UInt32 = 0x20 | 23 << 16

    /// One row of the redirection table (data sheet, 3.2.4).
    public struct RedirectionEntry: RawRepresentable, Codable, Equatable, Sendable {
        public var rawValue: UInt64

        static let logical: UInt64 = 1 << 11
        static let remoteIRR: UInt64 = 1 << 14
        static let levelTriggered: UInt64 = 1 << 15
        static let masked: UInt64 = 1 << 16
        /// All but the delivery status, the remote IRR and the reserved bits.
        static let writable: UInt64 = 0xff00_0000_0001_afff

        public init(rawValue: UInt64) { self.rawValue = rawValue }

        public var isMasked: Bool { rawValue & Self.masked != 0 }
        public var mode: DeliveryMode { DeliveryMode(bits10to8: rawValue) }
        public var hasRemoteIRR: Bool { rawValue & Self.remoteIRR != 0 }
        public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue) }
        /// The trigger mode that counts: only fixed and lowest-priority interrupts have levels.
        public var isLevelTriggered: Bool {
            rawValue & Self.levelTriggered != 0 && (mode == .fixed || mode == .lowestPriority)
        }
        public var message: InterruptMessage {
            InterruptMessage(
                destination: UInt8(truncatingIfNeeded: rawValue >> 56), isLogical: rawValue & Self.logical != 0,
                mode: mode, vector: vector, isLevelTriggered: isLevelTriggered)
        }
    }

    /// The 24 redirection entries. There are never more or fewer: a decoded table of another length is refused.
    public struct RedirectionTable: Codable, Equatable, Sendable {
        private var entries: [RedirectionEntry]

        init() {
            entries = Array(repeating: RedirectionEntry(rawValue: RedirectionEntry.masked), count: IOAPIC.pinCount)
        }

        public init(from decoder: any Decoder) throws {
            let container = try decoder.singleValueContainer()
            entries = try container.decode([RedirectionEntry].self)
            guard entries.count == IOAPIC.pinCount else {
                throw DecodingError.dataCorruptedError(
                    in: container, debugDescription: "an I/O APIC has \(IOAPIC.pinCount) redirection entries")
            }
        }

        public func encode(to encoder: any Encoder) throws {
            var container = encoder.singleValueContainer()
            try container.encode(entries)
        }

        /// The entry of a pin; a masked one for a pin that doesn't exist.
        public subscript(pin: Int) -> RedirectionEntry {
            get {
                entries.indices.contains(pin) ? entries[pin] : RedirectionEntry(rawValue: RedirectionEntry.masked)
            }
            set {
                guard entries.indices.contains(pin) else { return }
                entries[pin] = newValue
            }
        }
    }

    var registerSelect: UInt8 = 0
    /// Bits 27:24 of the identification register.
    var id: UInt8 = 0
    /// Bits 27:24 of the arbitration register, loaded when the identification is written.
    var arbitrationID: UInt8 = 0
    public internal(set) var table = RedirectionTable()
    /// One bit a pin that is asserted.
    public internal(set) var levels: UInt32 = 0
    /// One bit a pin whose message is to be sent. A level-triggered pin stays until its message is accepted.
    public private(set) var requests: UInt32 = 0

    public init() {}

    // MARK: Pins

    /// Asserts or releases a pin. An edge on a masked pin is lost; a level is kept (data sheet, 3.2.4, interrupt mask).
    public mutating func setPin(_ pin: Int, level: Bool) {
        guard (0..<Self.pinCount).contains(pin) else { return }
        let bit: UInt32 = 1 &<< UInt32(truncatingIfNeeded: pin)
        let rises = level && levels & bit == 0
        levels = level ? levels | bit : levels & ~bit
        let entry = table[pin]
        if entry.isLevelTriggered {
            evaluateLevel(of: pin)
        } else if rises, !entry.isMasked {
            requests |= bit
        }
    }

    /// The message that a requesting pin wants to send.
    public func message(for pin: Int) -> InterruptMessage { table[pin].message }

    /// Ends a request. An accepted level sets the remote IRR; a refused one waits, a refused edge is lost.
    public mutating func finish(_ pin: Int, accepted: Bool) {
        guard (0..<Self.pinCount).contains(pin) else { return }
        let bit: UInt32 = 1 &<< UInt32(truncatingIfNeeded: pin)
        if table[pin].isLevelTriggered {
            guard accepted else { return }
            table[pin].rawValue |= RedirectionEntry.remoteIRR
        }
        requests &= ~bit
    }

    /// An EOI for `vector`, from the local APIC or the EOI register; pins still asserted ask again.
    public mutating func endOfInterrupt(_ vector: UInt8) {
        for pin in 0..<Self.pinCount where table[pin].vector == vector && table[pin].hasRemoteIRR {
            table[pin].rawValue &= ~RedirectionEntry.remoteIRR
            evaluateLevel(of: pin)
        }
    }

    private mutating func evaluateLevel(of pin: Int) {
        let bit: UInt32 = 1 &<< UInt32(truncatingIfNeeded: pin)
        let entry = table[pin]
        let asks = entry.isLevelTriggered && !entry.isMasked && !entry.hasRemoteIRR && levels & bit != 0
        requests = asks ? requests | bit : requests & ~bit
    }

    // MARK: Registers

    /// Reads from the page. A window read of fewer than 4 bytes gives the low bytes; other offsets read 0.
    public mutating func readMMIO(offset: UInt32, size: Int, at now: Nanoseconds) -> UInt64 {
        let value: UInt32 =
            switch offset & 0xff {
            case Offset.registerSelect: UInt32(registerSelect)
            case Offset.window: readWindow()
            default: 0
            }
        return size >= 4 ? UInt64(value) : UInt64(value) & (1 &<< UInt64(max(size, 0) &* 8) &- 1)
    }

    /// Writes to the page. As in QEMU, the select register takes any size, the others 4 bytes; of 8, the low half.
    public mutating func writeMMIO(offset: UInt32, size: Int, value: UInt64, at now: Nanoseconds) {
        switch offset & 0xff {
        case Offset.registerSelect: registerSelect = UInt8(truncatingIfNeeded: value)
        case Offset.window where size >= 4: writeWindow(UInt32(truncatingIfNeeded: value))
        case Offset.endOfInterrupt where size >= 4: endOfInterrupt(UInt8(truncatingIfNeeded: value))
        default: break
        }
    }

    private func readWindow() -> UInt32 {
        switch registerSelect {
        case Register.id: return UInt32(id & 0xf) &<< 24
        case Register.version: return Self.version
        case Register.arbitration: return UInt32(arbitrationID & 0xf) &<< 24
        case Register.redirectionTable..<Register.end:
            let entry = table[selectedPin].rawValue
            return UInt32(truncatingIfNeeded: registerSelect & 1 == 0 ? entry : entry >> 32)
        default: return 0
        }
    }

    private mutating func writeWindow(_ value: UInt32) {
        switch registerSelect {
        case Register.id:
            id = UInt8(truncatingIfNeeded: value >> 24) & 0xf
            arbitrationID = id
        case Register.redirectionTable..<Register.end:
            writeEntry(selectedPin, value, isHigh: registerSelect & 1 != 0)
        default: break
        }
    }

    private var selectedPin: Int { Int((registerSelect &- Register.redirectionTable) >> 1) }

    /// Writes half an entry. Writing the edge trigger mode clears the remote IRR, which is how Linux simulates an EOI.
    private mutating func writeEntry(_ pin: Int, _ value: UInt32, isHigh: Bool) {
        let old = table[pin].rawValue
        let written = isHigh ? old & 0xffff_ffff | UInt64(value) &<< 32 : old & ~0xffff_ffff | UInt64(value)
        var new = written & RedirectionEntry.writable
        if new & RedirectionEntry.levelTriggered != 0 { new |= old & RedirectionEntry.remoteIRR }
        table[pin].rawValue = new
        evaluateLevel(of: pin)
    }
}
