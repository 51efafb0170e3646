/// ACPI fixed hardware at ports 0x600 to 0x60b: PM1a event block, PM1a control block, power management timer.
///
/// ACPI specification 6.5, section 4.8.3 "Fixed Hardware Features" and 4.8.3.3 "Power Management Timer". A table writer
/// takes the addresses and `sleepTypeS5` from here. There is no SMI command port: the machine is always in ACPI mode,
/// SCI_EN is set from the start, and the guest may clear it.
///
/// Nobody presses a button or wakes this machine: of the event bits only the timer's is ever set.
public struct ACPIPowerManagement: BytePortDevice {
    public static let pm1aEventBlock: UInt16 = 0x600
    public static let pm1aControlBlock: UInt16 = 0x604
    public static let pmTimerBlock: UInt16 = 0x608
    /// The value of SLP_TYPx that means S5, soft off; SLP_EN with any other does nothing.
    public static let sleepTypeS5: UInt16 = 5
    /// The interrupt that the fixed hardware raises, level-triggered.
    public static let sciIRQ = 9
    public static let clock = ClockRate(hertz: 3_579_545)

    private enum Register {
        static let statusLow: UInt16 = 0
        static let statusHigh: UInt16 = 1
        static let enableLow: UInt16 = 2
        static let enableHigh: UInt16 = 3
        static let controlLow: UInt16 = 4
        static let controlHigh: UInt16 = 5
        static let timer: ClosedRange<UInt16> = 8...11
    }

    private enum PM1Event {
        static let timer: UInt16 = 0b0000_0000_0000_0001
        /// TMR, GBL, PWRBTN, SLPBTN, RTC.
        static let enableWritable: UInt16 = 0b0000_0111_0010_0001
    }

    private enum PM1Control {
        static let sciEnable: UInt16 = 0b0000_0000_0000_0001
        static let sleepType: UInt16 = 0b0001_1100_0000_0000
        static let sleepTypeShift: UInt16 = 10
        static let sleepEnable: UInt16 = 0b0010_0000_0000_0000
        /// SCI_EN, BM_RLD and SLP_TYPx; GBL_RLS and SLP_EN are write-only.
        static let kept: UInt16 = 0b0001_1100_0000_0011
    }

    /// Whether the timer counts 32 bits (TMR_VAL_EXT in the FADT) or 24.
    public let isTimer32Bit: Bool

    private var status: UInt16 = 0
    private var enable: UInt16 = 0
    private var control = PM1Control.sciEnable
    /// How often the timer's top bit had changed when `status` was last brought up to date.
    private var topBitChanges: UInt64 = 0
    private var request: PowerRequest?

    public init(isTimer32Bit: Bool = true) {
        self.isTimer32Bit = isTimer32Bit
    }

    /// The level of the SCI.
    public var irq: Bool { control & PM1Control.sciEnable != 0 && status & enable != 0 }

    public mutating func takeRequest() -> PowerRequest? {
        defer { request = nil }
        return request
    }

    /// What the reset line does; the timer runs on.
    public mutating func reset(at now: Nanoseconds) {
        advance(to: now)
        status = 0
        enable = 0
        control = PM1Control.sciEnable
        request = nil
    }

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? {
        guard control & PM1Control.sciEnable != 0, enable & ~status & PM1Event.timer != 0, !irq else { return nil }
        let (next, overflow) = (topBitChanges &+ 1).multipliedReportingOverflow(by: 1 << topBit)
        return overflow ? nil : Self.clock.time(ofTick: next)?.asDeadline(after: now)
    }

    public mutating func advance(to now: Nanoseconds) {
        let changes = Self.clock.ticks(at: now) >> topBit
        if changes > topBitChanges {
            topBitChanges = changes
            status |= PM1Event.timer
        }
    }

    public mutating func readByte(_ offset: UInt16, at now: Nanoseconds) -> UInt8 {
        advance(to: now)
        switch offset {
        case Register.statusLow: return UInt8(truncatingIfNeeded: status)
        case Register.statusHigh: return UInt8(truncatingIfNeeded: status >> 8)
        case Register.enableLow: return UInt8(truncatingIfNeeded: enable)
        case Register.enableHigh: return UInt8(truncatingIfNeeded: enable >> 8)
        case Register.controlLow: return UInt8(truncatingIfNeeded: control)
        case Register.controlHigh: return UInt8(truncatingIfNeeded: control >> 8)
        case Register.timer:
            let value = Self.clock.ticks(at: now) & (isTimer32Bit ? 0xffff_ffff : 0xff_ffff)
            return UInt8(truncatingIfNeeded: value >> UInt64(8 &* (offset &- Register.timer.lowerBound)))
        default: return 0
        }
    }

    public mutating func writeByte(_ offset: UInt16, _ value: UInt8, at now: Nanoseconds) {
        advance(to: now)
        let value = UInt16(value)
        switch offset {
        case Register.statusLow: status &= ~value
        case Register.statusHigh: status &= ~(value << 8)
        case Register.enableLow: enable = (enable & 0xff00 | value) & PM1Event.enableWritable
        case Register.enableHigh: enable = (enable & 0x00ff | value << 8) & PM1Event.enableWritable
        case Register.controlLow: control = (control & 0xff00 | value) & PM1Control.kept
        case Register.controlHigh: writeControlHigh(value << 8)
        default: break
        }
    }

    private mutating func writeControlHigh(_ value: UInt16) {
        control = (control & 0x00ff | value) & PM1Control.kept
        let sleepType = (value & PM1Control.sleepType) >> PM1Control.sleepTypeShift
        if value & PM1Control.sleepEnable != 0, sleepType == Self.sleepTypeS5 { request = .powerOff }
    }

    /// TMR_STS is set whenever this bit of the timer changes.
    private var topBit: UInt64 { isTimer32Bit ? 31 : 23 }
}
