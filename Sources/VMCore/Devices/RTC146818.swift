/// The real-time clock and CMOS memory at ports 0x70 (index) and 0x71 (data); its interrupt is IRQ 8.
///
/// Motorola MC146818A data sheet. The time registers count on from a wall-clock time given at the start, so what they
/// show depends on that and on machine time alone.
///
/// Where the data sheet leaves things open:
/// - Only a 32.768 kHz crystal is fitted; divider settings 000, 001 and 010 all run it at its right speed, any other
///   setting holds the divider in reset. The first update comes half a second after a reset ends.
/// - Registers count on from what was written into them. Values out of range count as the nearest valid one, a day
///   beyond the end of its month as the days after it. Changing 12/24 or BCD/binary reinterprets them.
/// - The century at 0x32, with an alias at 0x37 as on the PS/2, is in the same format as the year.
/// - The index port reads as all ones.
public struct RTC146818: BytePortDevice {
    private enum Register {
        static let seconds: UInt8 = 0x00
        static let secondsAlarm: UInt8 = 0x01
        static let minutes: UInt8 = 0x02
        static let minutesAlarm: UInt8 = 0x03
        static let hours: UInt8 = 0x04
        static let hoursAlarm: UInt8 = 0x05
        static let dayOfWeek: UInt8 = 0x06
        static let dayOfMonth: UInt8 = 0x07
        static let month: UInt8 = 0x08
        static let year: UInt8 = 0x09
        static let a: UInt8 = 0x0a
        static let b: UInt8 = 0x0b
        static let c: UInt8 = 0x0c
        static let d: UInt8 = 0x0d
        static let century: UInt8 = 0x32
        static let centuryAlias: UInt8 = 0x37
    }

    private enum A {
        static let uip: UInt8 = 0b1000_0000
        static let writable: UInt8 = 0b0111_1111
        static let rateSelect: UInt8 = 0b0000_1111
        /// 32.768 kHz and 1,024 Hz, what a BIOS sets.
        static let initial: UInt8 = 0b0010_0110
    }

    private enum B {
        static let set: UInt8 = 0b1000_0000
        static let pie: UInt8 = 0b0100_0000
        static let aie: UInt8 = 0b0010_0000
        static let uie: UInt8 = 0b0001_0000
        static let sqwe: UInt8 = 0b0000_1000
        static let dm: UInt8 = 0b0000_0100
        static let hours24: UInt8 = 0b0000_0010
    }

    private enum C {
        static let irqf: UInt8 = 0b1000_0000
        static let pf: UInt8 = 0b0100_0000
        static let af: UInt8 = 0b0010_0000
        static let uf: UInt8 = 0b0001_0000
    }

    private static let validRAMAndTime: UInt8 = 0b1000_0000
    private static let dontCare: UInt8 = 0b1100_0000
    private static let pm: UInt8 = 0b1000_0000
    private static let oscillator = ClockRate(hertz: 32_768)
    private static let second: UInt64 = 1_000_000_000
    /// t_BUC and t_UC for a 32.768 kHz time base: UIP rises 244 µs before an update cycle of 1,984 µs.
    private static let updateWarning: UInt64 = 244_000 + 1_984_000

    /// The wall-clock time at machine time 0, seconds since 1970-01-01T00:00:00 UTC.
    public let startSeconds: Int64

    private var memory: CMOSMemory
    private var index: UInt8 = 0
    /// Bit 7 of the index port, a latch beside the clock chip on a PC: the guest has masked NMI.
    public private(set) var isNMIDisabled = false

    /// When the divider chain last started from zero.
    private var dividerStart = Nanoseconds(0)
    /// The oscillator pulse since then up to which periodic events have been taken in.
    private var pulse: UInt64 = 0
    /// When the next update cycle ends.
    private var nextUpdate = Nanoseconds(Self.second)

    /// A clock that shows `startSeconds`, clamped to the years 0 to 9999, at machine time 0.
    ///
    /// - Parameter lowMemoryLimit: where RAM below 4 GiB ends at the latest; what goes beyond continues at 4 GiB.
    public init(startSeconds: Int64, memoryBytes: UInt64, lowMemoryLimit: UInt64, cpuCount: Int = 1) {
        self.startSeconds = min(max(startSeconds, CalendarTime.range.lowerBound), CalendarTime.range.upperBound)
        memory = CMOSMemory(memoryBytes: memoryBytes, lowMemoryLimit: lowMemoryLimit, cpuCount: cpuCount)
        memory[Register.a] = A.initial
        memory[Register.b] = B.hours24
        memory[Register.d] = Self.validRAMAndTime
        let time = CalendarTime(secondsSince1970: self.startSeconds)
        show(time)
        memory[Register.dayOfWeek] = UInt8(truncatingIfNeeded: time.weekday)
    }

    /// The level of the interrupt output (the inverse of the chip's IRQ pin).
    public var irq: Bool { memory[Register.b] & memory[Register.c] & (C.pf | C.af | C.uf) != 0 }

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? {
        let wanted = memory[Register.b] & ~memory[Register.c] & (C.pf | C.af | C.uf)
        guard wanted != 0, !irq, isDividerRunning else { return nil }
        var deadline: Nanoseconds?
        func consider(_ moment: UInt64) {
            deadline = min(deadline ?? Nanoseconds(moment), Nanoseconds(moment))
        }
        if wanted & C.pf != 0, let shift = periodShift,
            let moment = Self.oscillator.time(ofTick: (pulse >> shift &+ 1) << shift) {
            consider(dividerStart.rawValue &+ moment.rawValue)
        }
        if memory[Register.b] & B.set == 0 {
            if wanted & C.uf != 0 { consider(nextUpdate.rawValue) }
            if wanted & C.af != 0, let seconds = secondsToAlarm(from: time.secondOfDay) {
                consider(nextUpdate.rawValue &+ UInt64(seconds - 1) &* Self.second)
            }
        }
        return deadline?.asDeadline(after: now)
    }

    public mutating func advance(to now: Nanoseconds) {
        guard isDividerRunning else { return }
        let newPulse = Self.oscillator.ticks(at: now - dividerStart)
        if let shift = periodShift, newPulse >> shift > pulse >> shift { memory[Register.c] |= C.pf }
        pulse = max(pulse, newPulse)

        guard now >= nextUpdate else { return }
        let cycles = (now.rawValue &- nextUpdate.rawValue) / Self.second &+ 1
        nextUpdate = Nanoseconds(nextUpdate.rawValue &+ cycles &* Self.second)
        if memory[Register.b] & B.set == 0 { update(cycles: Int64(truncatingIfNeeded: cycles)) }
    }

    /// What the chip's RESET pin does: interrupts off, flags cleared; time and memory stay.
    public mutating func reset(at now: Nanoseconds) {
        advance(to: now)
        memory[Register.b] &= ~(B.pie | B.aie | B.uie | B.sqwe)
        memory[Register.c] = 0
        isNMIDisabled = false
    }

    // MARK: Registers

    public mutating func readByte(_ offset: UInt16, at now: Nanoseconds) -> UInt8 {
        guard offset & 1 != 0 else { return 0xff }
        advance(to: now)
        switch index {
        case Register.a: return memory[Register.a] | (isUpdating(at: now) ? A.uip : 0)
        case Register.c:
            defer { memory[Register.c] = 0 }
            return memory[Register.c] | (irq ? C.irqf : 0)
        case Register.centuryAlias: return memory[Register.century]
        default: return memory[index]
        }
    }

    public mutating func writeByte(_ offset: UInt16, _ value: UInt8, at now: Nanoseconds) {
        guard offset & 1 != 0 else {
            index = value & 0x7f
            isNMIDisabled = value & 0x80 != 0
            return
        }
        advance(to: now)
        switch index {
        case Register.a:
            let wasRunning = isDividerRunning
            memory[Register.a] = value & A.writable
            if isDividerRunning && !wasRunning { restartDivider(at: now) }
        case Register.b: memory[Register.b] = value & B.set != 0 ? value & ~B.uie : value
        case Register.c, Register.d: break
        case Register.centuryAlias: memory[Register.century] = value
        default: memory[index] = value
        }
    }

    private var isDividerRunning: Bool { memory[Register.a] >> 4 & 0b111 <= 0b010 }

    private mutating func restartDivider(at now: Nanoseconds) {
        dividerStart = now
        pulse = 0
        nextUpdate = Nanoseconds(now.rawValue &+ Self.second / 2)
    }

    private func isUpdating(at now: Nanoseconds) -> Bool {
        isDividerRunning && memory[Register.b] & B.set == 0
            && nextUpdate.rawValue &- now.rawValue <= Self.updateWarning
    }

    /// The base-2 logarithm of the periodic interrupt's period in oscillator pulses, data sheet table 5; nil when off.
    private var periodShift: UInt64? {
        let rate = memory[Register.a] & A.rateSelect
        switch rate {
        case 0: return nil
        case 1, 2: return UInt64(rate &+ 6)
        default: return UInt64(rate &- 1)
        }
    }

    // MARK: Time

    private mutating func update(cycles: Int64) {
        let old = time
        if let seconds = secondsToAlarm(from: old.secondOfDay), seconds <= cycles { memory[Register.c] |= C.af }
        memory[Register.c] |= C.uf
        show(CalendarTime(secondsSince1970: old.secondsSince1970 &+ cycles))
        let days = (old.secondOfDay + cycles) / CalendarTime.secondsPerDay
        let weekday = Int64(min(max(decode(memory[Register.dayOfWeek]), 1), 7))
        memory[Register.dayOfWeek] = encode((weekday - 1 + days) % 7 + 1)
    }

    /// What the time registers say, in whatever format registers B selects.
    private var time: CalendarTime {
        func field(_ register: UInt8, _ range: ClosedRange<Int64>) -> Int64 {
            min(max(decode(memory[register]), range.lowerBound), range.upperBound)
        }
        let hour = min(decodeHour(memory[Register.hours]), 23)
        return CalendarTime(
            year: field(Register.century, 0...99) * 100 + field(Register.year, 0...99),
            month: field(Register.month, 1...12), day: field(Register.dayOfMonth, 1...31),
            secondOfDay: (hour * 60 + field(Register.minutes, 0...59)) * 60 + field(Register.seconds, 0...59))
    }

    private mutating func show(_ time: CalendarTime) {
        memory[Register.seconds] = encode(time.secondOfDay % 60)
        memory[Register.minutes] = encode(time.secondOfDay / 60 % 60)
        memory[Register.hours] = encodeHour(time.secondOfDay / 3_600)
        memory[Register.dayOfMonth] = encode(time.day)
        memory[Register.month] = encode(time.month)
        memory[Register.year] = encode(time.year % 100)
        memory[Register.century] = encode(time.year / 100 % 100)
    }

    private func decode(_ byte: UInt8) -> Int64 {
        memory[Register.b] & B.dm != 0 ? Int64(byte) : Int64(byte >> 4) * 10 + Int64(byte & 15)
    }

    private func encode(_ value: Int64) -> UInt8 {
        UInt8(truncatingIfNeeded: memory[Register.b] & B.dm != 0 ? value : (value / 10) << 4 | value % 10)
    }

    private func decodeHour(_ byte: UInt8) -> Int64 {
        if memory[Register.b] & B.hours24 != 0 { return decode(byte) }
        return decode(byte & ~Self.pm) % 12 + (byte & Self.pm != 0 ? 12 : 0)
    }

    private func encodeHour(_ hour: Int64) -> UInt8 {
        if memory[Register.b] & B.hours24 != 0 { return encode(hour) }
        return encode((hour + 11) % 12 + 1) | (hour >= 12 ? Self.pm : 0)
    }

    // MARK: Alarm

    /// What an alarm byte compares with: any value, one value, or, for a byte that no time register ever shows, none.
    private enum AlarmField {
        case any, exactly(Int64), never

        func first(from value: Int64, below limit: Int64) -> Int64? {
            switch self {
            case .any: value < limit ? value : nil
            case .exactly(let wanted): wanted >= value ? wanted : nil
            case .never: nil
            }
        }
    }

    private func alarmField(_ register: UInt8, isHour: Bool = false) -> AlarmField {
        let byte = memory[register]
        guard byte & Self.dontCare != Self.dontCare else { return .any }
        let value = isHour ? decodeHour(byte) : decode(byte)
        let isShown = value < (isHour ? 24 : 60) && (isHour ? encodeHour(value) : encode(value)) == byte
        return isShown ? .exactly(value) : .never
    }

    /// Seconds (1 to 86,400) until the time of day next equals the alarm; nil when it never does.
    private func secondsToAlarm(from secondOfDay: Int64) -> Int64? {
        let hours = alarmField(Register.hoursAlarm, isHour: true)
        let minutes = alarmField(Register.minutesAlarm)
        let seconds = alarmField(Register.secondsAlarm)

        func firstMatch(from start: Int64) -> Int64? {
            let (hour, minute) = (start / 3_600, start / 60 % 60)
            func moment(_ hour: Int64?, _ minute: Int64?, _ second: Int64?) -> Int64? {
                guard let hour, let minute, let second else { return nil }
                return (hour * 60 + minute) * 60 + second
            }
            let thisHour = hours.first(from: hour, below: hour + 1) == hour
            let thisMinute = thisHour && minutes.first(from: minute, below: minute + 1) == minute
            let second0 = seconds.first(from: 0, below: 60)
            if thisMinute, let match = moment(hour, minute, seconds.first(from: start % 60, below: 60)) { return match }
            if thisHour, let match = moment(hour, minutes.first(from: minute + 1, below: 60), second0) { return match }
            return moment(hours.first(from: hour + 1, below: 24), minutes.first(from: 0, below: 60), second0)
        }

        if let match = firstMatch(from: secondOfDay + 1) { return match - secondOfDay }
        return firstMatch(from: 0).map { $0 + CalendarTime.secondsPerDay - secondOfDay }
    }
}
