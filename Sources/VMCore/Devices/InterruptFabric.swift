/// The interrupt controllers of a PC with one processor, wired together.
///
/// ISA line n goes to 8259 input n and I/O APIC pin n, but line 0 goes to pin 2 (MP specification 1.4, 3.6.2.2). The
/// 8259s' INTR goes to the local APIC's LINT0 and to I/O APIC pin 0. ISA line 2 is the cascade and can't be set.
///
/// As a `PortDevice` it answers the 8259s' and ELCR ports; offsets are port numbers.
public struct InterruptFabric: PortDevice {
    public internal(set) var localAPIC: LocalAPIC
    public internal(set) var ioAPIC = IOAPIC()
    public internal(set) var pic = PIC8259Pair()

    static let pinOfINTR = 0
    static let pinOfISALine0 = 2
    static let pageSize: UInt64 = 0x1000

    /// The interrupt controllers after power-up; for the parameters see `LocalAPIC`.
    public init(physicalAddressBits: UInt8 = 40, offersX2APIC: Bool = true) {
        localAPIC = LocalAPIC(physicalAddressBits: physicalAddressBits, offersX2APIC: offersX2APIC)
    }

    // MARK: Lines

    /// Sets ISA line 0 to 15, as seen by the 8259s and by the I/O APIC. Other lines, and line 2, are ignored.
    public mutating func setLine(_ isa: Int, level: Bool, at now: Nanoseconds) {
        guard (0..<16).contains(isa), isa != Int(PIC8259.cascadeInput) else { return }
        localAPIC.advance(to: now)
        pic.setLine(isa, level: level)
        ioAPIC.setPin(isa == 0 ? Self.pinOfISALine0 : isa, level: level)
        settle()
    }

    /// Makes a rising edge on an ISA line, which stays high.
    public mutating func pulse(_ isa: Int, at now: Nanoseconds) {
        setLine(isa, level: false, at: now)
        setLine(isa, level: true, at: now)
    }

    /// Sets I/O APIC pin 1 to 23 alone, past the 8259s. Pin 0 belongs to the 8259s' INTR.
    public mutating func setPin(_ gsi: Int, level: Bool, at now: Nanoseconds) {
        guard gsi != Self.pinOfINTR else { return }
        localAPIC.advance(to: now)
        ioAPIC.setPin(gsi, level: level)
        settle()
    }

    /// Sets the processor's NMI line, which is the local APIC's LINT1.
    public mutating func setNMILine(level: Bool, at now: Nanoseconds) {
        localAPIC.advance(to: now)
        localAPIC.setLINT1(level)
    }

    // MARK: The processor's side

    /// Whether a vector is deliverable now to a processor whose task priority is `tpr`, which is CR8 << 4.
    ///
    /// Call `advance(to:)` before, so that the timer has fired.
    @inline(__always) public func interruptPending(tpr: UInt8) -> Bool {
        localAPIC.deliverableVector(tpr: tpr) != nil || isExtINTPending
    }

    /// Moves the vector to deliver into service and returns it; nil if none is pending. The local APIC's come first.
    public mutating func acknowledge(tpr: UInt8, at now: Nanoseconds) -> UInt8? {
        advance(to: now)
        if localAPIC.deliverableVector(tpr: tpr) != nil { return localAPIC.acknowledge(tpr: tpr) }
        guard isExtINTPending else { return nil }
        let vector = pic.acknowledge()
        drive(intr: false)
        settle()
        return vector
    }

    var isNMIPending: Bool { localAPIC.isNMIPending }

    /// True once for each NMI that waits for the processor.
    public mutating func takeNMI() -> Bool {
        defer { localAPIC.isNMIPending = false }
        return localAPIC.isNMIPending
    }

    /// Whether an INIT waits for the processor.
    public var isInitPending: Bool { localAPIC.isInitPending }

    /// Takes a waiting INIT and resets the local APIC's registers as INIT does; the processor is the caller's to reset.
    public mutating func takeInit() -> Bool {
        guard localAPIC.isInitPending else { return false }
        localAPIC.isInitPending = false
        localAPIC.resetRegisters()
        return true
    }

    /// The local APIC's task priority, of which CR8 is bits 7:4.
    ///
    /// Setting CR8 << 4 when bits 7:4 have that value already keeps the low bits that an MMIO or MSR write has set.
    public var tpr: UInt8 {
        get { localAPIC.taskPriority }
        set {
            if newValue != localAPIC.taskPriority & 0xf0 { localAPIC.taskPriority = newValue }
        }
    }

    @inline(__always) private var isExtINTPending: Bool {
        localAPIC.lint0Level && (localAPIC.passesExtINT || isINTRRedirected)
    }

    /// Whether I/O APIC pin 0 hands INTR to the processor.
    private var isINTRRedirected: Bool {
        let entry = ioAPIC.table[Self.pinOfINTR]
        return entry.mode == .extINT && !entry.isMasked && localAPIC.isSoftwareEnabled
            && localAPIC.isDestination(of: entry.message)
    }

    // MARK: Registers

    public mutating func read(offset: UInt16, size: Int, at now: Nanoseconds) -> UInt32 {
        localAPIC.advance(to: now)
        let value = pic.read(offset: offset, size: size, at: now)
        settle()
        return value
    }

    public mutating func write(offset: UInt16, size: Int, value: UInt32, at now: Nanoseconds) {
        localAPIC.advance(to: now)
        pic.write(offset: offset, size: size, value: value, at: now)
        settle()
    }

    /// Whether an address lies in the local APIC's page, where it is now, or in the I/O APIC's.
    public func ownsMMIO(_ address: GuestPhysicalAddress) -> Bool {
        isLocal(address) || isIO(address)
    }

    /// Reads `size` bytes (1, 2, 4 or 8); all ones where `ownsMMIO` is false.
    public mutating func readMMIO(address: GuestPhysicalAddress, size: Int, at now: Nanoseconds) -> UInt64 {
        let offset = UInt32(truncatingIfNeeded: address.rawValue & (Self.pageSize &- 1))
        if isLocal(address) { return localAPIC.readMMIO(offset: offset, size: size, at: now) }
        if isIO(address) { return ioAPIC.readMMIO(offset: offset, size: size, at: now) }
        return size >= 8 ? .max : 1 &<< UInt64(max(size, 0) &* 8) &- 1
    }

    /// Writes `size` bytes (1, 2, 4 or 8); nothing where `ownsMMIO` is false.
    public mutating func writeMMIO(address: GuestPhysicalAddress, size: Int, value: UInt64, at now: Nanoseconds) {
        let offset = UInt32(truncatingIfNeeded: address.rawValue & (Self.pageSize &- 1))
        if isLocal(address) {
            localAPIC.writeMMIO(offset: offset, size: size, value: value, at: now)
        } else if isIO(address) {
            localAPIC.advance(to: now)
            ioAPIC.writeMMIO(offset: offset, size: size, value: value, at: now)
        }
        settle()
    }

    /// Whether a local APIC register counts or sets the timer: its LVT entry, both counts and the divide configuration.
    /// Wherever the page is: a guest moves it seldom, and the low bits tell.
    @inline(__always) static func isTimerRegister(mmio address: UInt64) -> Bool {
        isTimerRegister(UInt32(truncatingIfNeeded: address & (pageSize &- 1)) & 0xFF0)
    }

    @inline(__always) static func isTimerRegister(msr index: UInt64) -> Bool {
        index >> 8 == 8 && isTimerRegister(UInt32(truncatingIfNeeded: index & 0xFF) << 4)
    }

    @inline(__always) private static func isTimerRegister(_ register: UInt32) -> Bool {
        register == 0x320 || register == 0x380 || register == 0x390 || register == 0x3E0
    }

    /// Whether an MSR is the interrupt controllers': IA32_APIC_BASE or an x2APIC register.
    public static func ownsMSR(_ index: UInt32) -> Bool {
        index == LocalAPIC.msrBase || LocalAPIC.msrX2APIC.contains(index)
    }

    /// Reads an MSR; nil is #GP.
    public mutating func readMSR(_ index: UInt32, at now: Nanoseconds) -> UInt64? {
        localAPIC.readMSR(index, at: now)
    }

    /// Writes an MSR; false is #GP.
    public mutating func writeMSR(_ index: UInt32, value: UInt64, at now: Nanoseconds) -> Bool {
        defer { settle() }
        return localAPIC.writeMSR(index, value, at: now)
    }

    private func isLocal(_ address: GuestPhysicalAddress) -> Bool {
        guard let page = localAPIC.page else { return false }
        return address.rawValue & ~(Self.pageSize &- 1) == page.rawValue
    }

    private func isIO(_ address: GuestPhysicalAddress) -> Bool {
        address.rawValue & ~(Self.pageSize &- 1) == IOAPIC.defaultAddress.rawValue
    }

    // MARK: Time

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? { localAPIC.nextDeadline(after: now) }

    /// Whether nothing comes of the interval timer's ticks: masked at both controllers, they wait as one request.
    var isTimerMasked: Bool { pic.master.mask & 1 != 0 && ioAPIC.table[2].isMasked }

    mutating func upcomingDeadline(after now: Nanoseconds) -> Nanoseconds? { localAPIC.nextDeadline(after: now) }

    public mutating func advance(to now: Nanoseconds) { localAPIC.advance(to: now) }

    // MARK: Wires

    /// Lets every output reach the inputs that it is wired to.
    private mutating func settle() {
        if let vector = localAPIC.takeEndedLevelVector() { ioAPIC.endOfInterrupt(vector) }
        if pic.output != localAPIC.lint0Level { drive(intr: pic.output) }
        sendMessages()
    }

    private mutating func drive(intr: Bool) {
        localAPIC.setLINT0(intr)
        ioAPIC.setPin(Self.pinOfINTR, level: intr)
    }

    private mutating func sendMessages() {
        var waiting = ioAPIC.requests & IOAPIC.pinMask
        while waiting != 0 {
            let pin = waiting.trailingZeroBitCount
            waiting &= waiting &- 1
            ioAPIC.finish(pin, accepted: localAPIC.receive(ioAPIC.message(for: pin)))
        }
    }
}
