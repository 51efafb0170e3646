/// The legacy devices of a PC, wired as on its board; everything but the interrupt controllers.
///
/// | ports | device |
/// |---|---|
/// | 0x40-0x43 | timer (IRQ 0, by `takeTimerTicks`) |
/// | 0x60, 0x64 | keyboard controller (IRQ 1) |
/// | 0x61, 0x80, 0x92, 0xed, 0xcf9 | board ports |
/// | 0x70-0x71 | clock and CMOS memory (IRQ 8) |
/// | 0xe0-0xeb, 0x2000-0x2017 | test device, if configured |
/// | 0xe9 | debug console, unless the test device is there |
/// | 0xf4-0xf7 | debug exit |
/// | 0x3f8-0x3ff | COM1 (IRQ 4) |
/// | 0x510-0x511 | firmware configuration |
/// | 0x600-0x60b | ACPI (IRQ 9) |
///
/// In memory, if configured: the event timer at 0xfed00000 (I/O APIC pins 16 to 23, or IRQ 0 and 8 in place of timer and
/// clock) and the test device's window.
///
/// Unclaimed ports read as all ones and swallow writes. An access of two or four bytes reaches byte-wide devices as
/// bytes at rising ports, all at the same moment; the selector of the firmware configuration and the debug exit take it
/// whole. 0xcf9 answers to byte accesses only: it lies inside PCI's configuration address register.
public struct Chipset: Device {
    private enum IRQ {
        static let timer = 0
        static let keyboard = 1
        static let com1 = 4
        static let rtc = 8
    }

    private var pit = PIT8254()
    private var rtc: RTC146818
    private var com1 = UART16550A()
    private var keyboard = I8042()
    private var board = SystemPorts()
    private var debug = DebugPorts()
    private var acpi: ACPIPowerManagement
    private var firmware: FirmwareConfig
    private var test: TestDevice?
    /// Nil also in recordings of versions that had none.
    private var hpet: HPET?

    /// What the guest asked for first since `takeRequest`.
    public private(set) var request: PowerRequest?

    public init(_ configuration: ChipsetConfiguration) {
        rtc = RTC146818(
            startSeconds: configuration.wallClockStart, memoryBytes: configuration.memoryBytes,
            lowMemoryLimit: configuration.lowMemoryLimit, cpuCount: Int(configuration.cpuCount))
        acpi = ACPIPowerManagement(isTimer32Bit: configuration.isPMTimer32Bit)
        firmware = FirmwareConfig(contents: configuration.firmwareContents)
        test = configuration.testDevice ? TestDevice() : nil
        hpet = configuration.hpet ? HPET() : nil
    }

    // MARK: Time

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? { deadline(after: now, timer: true) }

    /// With `timer` false, the next moment that isn't that of the timer on IRQ 0.
    private func deadline(after now: Nanoseconds, timer: Bool) -> Nanoseconds? {
        let replaces = replacesLegacyTimers
        var deadline = timer && !replaces ? pit.nextDeadline(after: now) : nil
        func consider(_ other: Nanoseconds?) {
            guard let other else { return }
            deadline = min(deadline ?? other, other)
        }
        consider(rtc.nextDeadline(after: now))
        consider(com1.nextDeadline(after: now))
        consider(acpi.nextDeadline(after: now))
        consider(hpet?.nextDeadline(after: now, timer0: timer || !replaces))
        return deadline
    }

    mutating func upcomingDeadline(after now: Nanoseconds, timer: Bool) -> Nanoseconds? {
        deadline(after: now, timer: timer)
    }

    public mutating func advance(to now: Nanoseconds) {
        pit.advance(to: now)
        rtc.advance(to: now)
        com1.advance(to: now)
        acpi.advance(to: now)
        hpet?.advance(to: now)
    }

    // MARK: Ports

    /// Answers an IN of `size` bytes (1, 2 or 4).
    public mutating func readPort(_ port: UInt16, size: Int, at now: Nanoseconds) -> UInt32 {
        if size == 1 { return UInt32(readByte(port, isWide: false, at: now)) }
        var value: UInt32 = 0
        for i in 0..<byteCount(ofAccess: size) {
            value |= UInt32(readByte(port &+ UInt16(i), isWide: true, at: now)) << UInt32(8 &* i)
        }
        return value
    }

    /// Takes an OUT of the low `size` bytes (1, 2 or 4) of `value`.
    public mutating func writePort(_ port: UInt16, size: Int, value: UInt32, at now: Nanoseconds) {
        switch port {
        case 0xf4...0xf7:
            if size > 0 { debug.writeExit(value, size: size) }
            note(debug.takeRequest())
        case FirmwareConfig.selectorPort where size == 2: firmware.select(UInt16(truncatingIfNeeded: value))
        default:
            for i in 0..<byteCount(ofAccess: size) {
                let byte = UInt8(truncatingIfNeeded: value >> UInt32(8 &* i))
                writeByte(port &+ UInt16(i), byte, isWide: size != 1, at: now)
            }
        }
    }

    private mutating func readByte(_ port: UInt16, isWide: Bool, at now: Nanoseconds) -> UInt8 {
        switch port {
        case 0x3f8...0x3ff: return com1.readByte(port & 7, at: now)
        case 0x40...0x43: return pit.readByte(port & 3, at: now)
        case 0x60, 0x64: return keyboard.readByte(port & 7, at: now)
        case 0x61:
            return board.readByte(port, at: now) | (pit.output(2, at: now) ? SystemPorts.timer2Output : 0)
        case 0x70, 0x71: return rtc.readByte(port & 1, at: now)
        case 0x80, 0x92, 0xed: return board.readByte(port, at: now)
        case 0xe0...0xeb:
            if test != nil { return test?.readByte(port, at: now) ?? 0xff }
            return port == 0xe9 ? DebugPorts.consolePresent : 0xff
        case 0xf4...0xf7: return 0
        case 0x510: return 0
        case 0x511: return firmware.readData()
        case 0x600...0x60b: return acpi.readByte(port & 15, at: now)
        case 0xcf9: return isWide ? 0xff : board.readByte(port, at: now)
        case 0x2000...0x2017: return test?.readByte(port, at: now) ?? 0xff
        default: return 0xff
        }
    }

    private mutating func writeByte(_ port: UInt16, _ value: UInt8, isWide: Bool, at now: Nanoseconds) {
        switch port {
        case 0x3f8...0x3ff: com1.writeByte(port & 7, value, at: now)
        case 0x40...0x43: pit.writeByte(port & 3, value, at: now)
        case 0x60, 0x64:
            keyboard.writeByte(port & 7, value, at: now)
            note(keyboard.takeRequest())
        case 0x61:
            board.writeByte(port, value, at: now)
            pit.setGate(2, board.timer2Gate, at: now)
        case 0x70, 0x71: rtc.writeByte(port & 1, value, at: now)
        case 0x80, 0x92, 0xed: writeBoard(port, value, at: now)
        case 0xe0...0xeb:
            if test != nil {
                test?.writeByte(port, value, at: now)
            } else if port == 0xe9 {
                debug.writeConsole(value)
            }
        case 0xf4...0xf7:
            debug.writeExit(UInt32(value), size: 1)
            note(debug.takeRequest())
        case 0x600...0x60b:
            acpi.writeByte(port & 15, value, at: now)
            note(acpi.takeRequest())
        case 0xcf9: if !isWide { writeBoard(port, value, at: now) }
        case 0x2000...0x2017: test?.writeByte(port, value, at: now)
        default: break
        }
    }

    private mutating func writeBoard(_ port: UInt16, _ value: UInt8, at now: Nanoseconds) {
        board.writeByte(port, value, at: now)
        note(board.takeRequest())
    }

    private mutating func note(_ new: PowerRequest?) {
        if request == nil { request = new }
    }

    // MARK: Memory

    private enum Window {
        case hpet(offset: UInt64)
        case test(offset: UInt64)
    }

    private func window(at address: UInt64) -> Window? {
        let inHPET = address &- HPET.address.rawValue
        if inHPET < HPET.size, hpet != nil { return .hpet(offset: inHPET) }
        let inTest = address &- TestDevice.windowBase
        return inTest < UInt64(TestDevice.windowSize) && test != nil ? .test(offset: inTest) : nil
    }

    /// Whether a device here answers at guest physical `address`.
    public func ownsMMIO(_ address: UInt64) -> Bool { window(at: address) != nil }

    /// Answers a load of `size` bytes (1 to 8); all ones where no device is.
    public mutating func readMMIO(_ address: UInt64, size: Int, at now: Nanoseconds) -> UInt64 {
        switch window(at: address) {
        case .hpet(let offset): hpet?.readMMIO(offset: offset, size: size, at: now) ?? 0
        case .test(let offset): test?.readWindow(offset: offset, size: size) ?? 0
        case nil: size >= 8 ? .max : (1 << UInt64(8 &* max(size, 0))) &- 1
        }
    }

    /// Takes a store of the low `size` bytes (1 to 8) of `value`.
    public mutating func writeMMIO(_ address: UInt64, size: Int, value: UInt64, at now: Nanoseconds) {
        switch window(at: address) {
        case .hpet(let offset): hpet?.writeMMIO(offset: offset, size: size, value: value, at: now)
        case .test(let offset): test?.writeWindow(offset: offset, size: size, value: value)
        case nil: break
        }
    }

    // MARK: Outputs

    /// Levels of the interrupt lines, bit n for IRQ n: keyboard 1, COM1 4, clock 8, ACPI 9. The timer's are pulses, by
    /// `takeTimerTicks`, and so may the event timer's be, by `takeHPETEdges`; the test device's may be any, by
    /// `takeTestLineChanges`.
    @inline(__always) public var isaLines: UInt32 {
        (keyboard.irq ? 1 << IRQ.keyboard : 0) | (com1.irq ? 1 << IRQ.com1 : 0)
            | (acpi.irq ? 1 << ACPIPowerManagement.sciIRQ : 0)
            | (replacesLegacyTimers ? hpetISALines : rtc.irq ? 1 << IRQ.rtc : 0)
    }

    @inline(__always) private var replacesLegacyTimers: Bool { hpet != nil && hpet!.replacesLegacyTimers }

    private var hpetISALines: UInt32 {
        guard let hpet else { return 0 }
        return (hpet.output(0) ? 1 << IRQ.timer : 0) | (hpet.output(1) ? 1 << IRQ.rtc : 0)
    }

    /// The I/O APIC pins that the event timer holds high, a bit each.
    @inline(__always) var hpetPins: UInt32 { hpet == nil ? 0 : hpetPinLevels }

    @inline(never) private var hpetPinLevels: UInt32 {
        guard let hpet else { return 0 }
        return (0..<HPET.timerCount).reduce(0) { pins, index in
            guard let pin = hpet.pin(index), hpet.output(index) else { return pins }
            return pins | 1 << UInt32(pin)
        }
    }

    @inline(__always) var hasHPETEdges: Bool { hpet != nil && hpet!.hasEdges }

    /// The ISA lines and the I/O APIC pins, a bit each, on which the event timer has made a rising edge since the last
    /// call.
    mutating func takeHPETEdges() -> (isaLines: UInt32, pins: UInt32) {
        guard let edges = hpet?.takeEdges(), edges != 0, let hpet else { return (0, 0) }
        var (lines, pins): (UInt32, UInt32) = (0, 0)
        for index in 0..<HPET.timerCount where edges >> UInt8(index) & 1 != 0 {
            if let pin = hpet.pin(index) {
                pins |= 1 << UInt32(pin)
            } else if hpet.replacesLegacyTimers, index < 2 {
                lines |= 1 << (index == 0 ? IRQ.timer : IRQ.rtc)
            }
        }
        return (lines, pins)
    }

    /// Whether the guest has masked NMI by bit 7 of port 0x70.
    public var isNMIDisabled: Bool { rtc.isNMIDisabled }

    /// The number of rising edges on IRQ 0 since the last call, up to the last `advance`.
    public mutating func takeTimerTicks() -> Int {
        let ticks = pit.takeTicks()
        return replacesLegacyTimers ? 0 : ticks
    }

    @inline(__always) var hasTestLineChanges: Bool { test != nil && test!.hasLineChanges }

    /// Changes of interrupt lines by the test device since the last call, oldest first.
    public mutating func takeTestLineChanges() -> [(gsi: Int, level: Bool)] {
        guard test?.hasLineChanges == true else { return [] }
        return test?.takeLineChanges() ?? []
    }

    /// Whether `takeSerialOutput` or `takeDebugOutput` has anything to give.
    public var hasOutput: Bool { com1.hasOutput || debug.hasOutput }

    public mutating func takeSerialOutput() -> [UInt8] { com1.takeOutput() }

    public mutating func takeDebugOutput() -> [UInt8] { debug.takeOutput() }

    public mutating func takeRequest() -> PowerRequest? {
        defer { request = nil }
        return request
    }

    // MARK: Inputs

    /// Whether COM1 would take a byte from its line.
    /// Whether the guest has begun to look at its serial input.
    public var isSerialAttended: Bool { com1.isAttended }

    public var canReceiveSerial: Bool { com1.canReceive }

    /// Brings a byte in on COM1's line; false when there is no room and the caller must keep it.
    public mutating func receiveSerial(_ byte: UInt8, at now: Nanoseconds) -> Bool { com1.receive(byte, at: now) }

    // MARK: Platform

    /// The part of the state that never changes and may be large. A checkpoint may leave it out: set it to
    /// `FirmwareContents()` in a copy before encoding, and to `ChipsetConfiguration.firmwareContents` after decoding.
    public var firmwareContents: FirmwareContents {
        get { firmware.contents }
        set { firmware.contents = newValue }
    }

    /// Resets the devices as the board's reset line does. Clock and CMOS memory stay, and so do output not taken yet
    /// and the test device, which has no reset.
    public mutating func reset(at now: Nanoseconds) {
        advance(to: now)
        pit.reset(at: now)
        rtc.reset(at: now)
        com1.reset()
        keyboard = I8042()
        board = SystemPorts()
        acpi.reset(at: now)
        firmware.reset()
        if hpet != nil { hpet = HPET() }
        request = nil
    }
}
