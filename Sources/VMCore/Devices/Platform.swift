/// The devices of the machine, wired as on a PC: the chipset's lines go to the interrupt controllers.
public struct Platform: Device {
    public internal(set) var interrupts: InterruptFabric
    public internal(set) var chipset: Chipset
    /// The level lines as they were last passed on.
    private var lines: UInt32 = 0
    /// The event timer's I/O APIC pins, likewise.
    private var hpetPins: UInt32 = 0
    /// The machine time that the devices were given last; see `DeviceInput`.
    public internal(set) var time = Nanoseconds(0)
    /// Whether the processor waits for an interrupt: it has executed HLT and nothing has entered since. KVM without
    /// interrupt controllers of its own leaves this to the monitor.
    public internal(set) var isHalted = false

    public init(_ configuration: ChipsetConfiguration) {
        interrupts = InterruptFabric()
        chipset = Chipset(configuration)
    }

    private enum CodingKeys: String, CodingKey { case interrupts, chipset, lines, hpetPins, time, isHalted }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        interrupts = try values.decode(InterruptFabric.self, forKey: .interrupts)
        chipset = try values.decode(Chipset.self, forKey: .chipset)
        lines = try values.decode(UInt32.self, forKey: .lines)
        hpetPins = try values.decodeIfPresent(UInt32.self, forKey: .hpetPins) ?? 0
        // Recordings of vmrr 0.1 don't say: they begin at power-on.
        time = try values.decodeIfPresent(Nanoseconds.self, forKey: .time) ?? Nanoseconds(0)
        isHalted = try values.decodeIfPresent(Bool.self, forKey: .isHalted) ?? false
    }

    @inline(__always)
    private static func isInterruptControllerPort(_ port: UInt16) -> Bool {
        port & 0xFF7E == 0x20 && port < 0x100 || port == 0x4D0 || port == 0x4D1
    }

    public mutating func readPort(_ port: UInt16, size: Int, at now: Nanoseconds) -> UInt32 {
        if Self.isInterruptControllerPort(port) { return interrupts.read(offset: port, size: size, at: now) }
        let value = chipset.readPort(port, size: size, at: now)
        passLines(at: now)
        return value
    }

    public mutating func writePort(_ port: UInt16, size: Int, value: UInt32, at now: Nanoseconds) {
        if Self.isInterruptControllerPort(port) {
            interrupts.write(offset: port, size: size, value: value, at: now)
        } else {
            chipset.writePort(port, size: size, value: value, at: now)
            passLines(at: now)
        }
    }

    /// Reads a hole in memory. Where no device answers, the bus floats: all ones.
    public mutating func readMMIO(_ address: GuestPhysicalAddress, size: Int, at now: Nanoseconds) -> UInt64 {
        if interrupts.ownsMMIO(address) { return interrupts.readMMIO(address: address, size: size, at: now) }
        guard chipset.ownsMMIO(address.rawValue) else { return .max }
        let value = chipset.readMMIO(address.rawValue, size: size, at: now)
        passLines(at: now)
        return value
    }

    public mutating func writeMMIO(_ address: GuestPhysicalAddress, size: Int, value: UInt64, at now: Nanoseconds) {
        if interrupts.ownsMMIO(address) {
            interrupts.writeMMIO(address: address, size: size, value: value, at: now)
        } else if chipset.ownsMMIO(address.rawValue) {
            chipset.writeMMIO(address.rawValue, size: size, value: value, at: now)
            passLines(at: now)
        }
    }

    /// Nil where the access raises #GP.
    public mutating func readMSR(_ index: UInt32, at now: Nanoseconds) -> UInt64? {
        if InterruptFabric.ownsMSR(index) { return interrupts.readMSR(index, at: now) }
        switch index {
        case 0x8B: return 0  // IA32_BIOS_SIGN_ID: no microcode update loaded
        case 0xFE: return 0  // IA32_MTRRCAP: no memory type ranges
        case 0x17, 0xCE: return 0  // IA32_PLATFORM_ID, MSR_PLATFORM_INFO
        case 0x1A0: return 1  // IA32_MISC_ENABLE: fast strings
        case 0xC001_0015: return 0  // AMD HWCR
        case 0xC001_001F, 0xC001_1029, 0xC001_1023: return 0  // AMD NB_CFG, DE_CFG, CU_CFG2
        default: return nil
        }
    }

    /// False where the access raises #GP.
    public mutating func writeMSR(_ index: UInt32, value: UInt64, at now: Nanoseconds) -> Bool {
        if InterruptFabric.ownsMSR(index) { return interrupts.writeMSR(index, value: value, at: now) }
        switch index {
        case 0x8B, 0x1A0, 0xC001_0015, 0xC001_1029, 0xC001_1023: return true
        default: return false
        }
    }

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? {
        switch (chipset.nextDeadline(after: now), interrupts.nextDeadline(after: now)) {
        case (let a?, let b?): min(a, b)
        case (let a, let b): a ?? b
        }
    }

    /// The next moment at which something can come of time going by: `nextDeadline`, without the ticks of a timer that
    /// is masked. In place; see `needsProcessor`.
    mutating func upcomingDeadline(after now: Nanoseconds) -> Nanoseconds? {
        let timer = !interrupts.isTimerMasked
        return switch (chipset.upcomingDeadline(after: now, timer: timer), interrupts.upcomingDeadline(after: now)) {
        case (let a?, let b?): min(a, b)
        case (let a, let b): a ?? b
        }
    }

    /// Whether an access to a port may change when a device is due, or what it has asked for.
    @inline(__always) static func mayChangeDeadline(port: UInt16) -> Bool { port != 0x80 && port != 0xED }

    public mutating func advance(to now: Nanoseconds) {
        chipset.advance(to: now)
        interrupts.advance(to: now)
        passLines(at: now)
    }

    /// Whether the UART has room for a byte and the guest looks at it.
    var canReceiveSerial: Bool { chipset.isSerialAttended && chipset.canReceiveSerial }

    /// Gives the UART a byte; false when it can't receive one.
    mutating func receiveSerial(_ byte: UInt8, at now: Nanoseconds) -> Bool {
        guard canReceiveSerial, chipset.receiveSerial(byte, at: now) else { return false }
        passLines(at: now)
        return true
    }

    /// Whether something waits for the processor, or it has another task priority than the interrupt controllers.
    ///
    /// `mutating` though it changes nothing, so that it works on the platform in place: a reading method of a class's
    /// property gets a copy of it, 750 bytes with reference counts.
    mutating func needsProcessor(taskPriority: UInt8) -> Bool {
        interrupts.interruptPending(tpr: taskPriority << 4) || interrupts.localAPIC.isNMIPending
            || interrupts.tpr >> 4 != taskPriority
    }

    @inline(never) private mutating func passTestLines(at now: Nanoseconds) {
        for change in chipset.takeTestLineChanges() { interrupts.setPin(change.gsi, level: change.level, at: now) }
    }

    @inline(never) private mutating func passHPETEdges(at now: Nanoseconds) {
        let edges = chipset.takeHPETEdges()
        for line in 0..<16 where edges.isaLines >> UInt32(line) & 1 != 0 { interrupts.pulse(line, at: now) }
        lines |= edges.isaLines
        for pin in 0..<IOAPIC.pinCount where edges.pins >> UInt32(pin) & 1 != 0 {
            interrupts.setPin(pin, level: false, at: now)
            interrupts.setPin(pin, level: true, at: now)
        }
        hpetPins |= edges.pins
    }

    @inline(never) private mutating func passHPETPins(at now: Nanoseconds) {
        let levels = chipset.hpetPins
        for pin in 0..<IOAPIC.pinCount where (levels ^ hpetPins) >> UInt32(pin) & 1 != 0 {
            interrupts.setPin(pin, level: levels >> UInt32(pin) & 1 != 0, at: now)
        }
        hpetPins = levels
    }

    /// Passes changes of the chipset's lines to the interrupt controllers.
    private mutating func passLines(at now: Nanoseconds) {
        // Several ticks that were waited for together are one edge: as on a PC whose interrupts were off.
        if chipset.takeTimerTicks() > 0 { interrupts.pulse(0, at: now) }
        if chipset.hasTestLineChanges { passTestLines(at: now) }
        if chipset.hasHPETEdges { passHPETEdges(at: now) }
        if chipset.hpetPins != hpetPins { passHPETPins(at: now) }
        let levels = chipset.isaLines
        var changed = levels ^ lines
        guard changed != 0 else { return }
        lines = levels
        while changed != 0 {
            let line = changed.trailingZeroBitCount
            interrupts.setLine(line, level: levels >> line & 1 == 1, at: now)
            changed &= changed - 1
        }
    }
}

extension Platform {
    public var hasOutput: Bool { chipset.hasOutput }
    public mutating func takeSerialOutput() -> [UInt8] { chipset.takeSerialOutput() }
    public mutating func takeDebugOutput() -> [UInt8] { chipset.takeDebugOutput() }
    public mutating func takeRequest() -> PowerRequest? { chipset.takeRequest() }
}
