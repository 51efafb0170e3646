/// The local APIC of the one processor, as xAPIC (MMIO) and x2APIC (MSRs).
///
/// SDM Vol. 3A, chapter 11. Version 0x14, six LVT entries (no CMCI), EOI-broadcast suppression, x2APIC; the timer's
/// input clock is 1 GHz, one nanosecond a tick before the divider (`LocalAPICTimer`). Left out: TSC-deadline mode, SMI,
/// start-up IPIs (there is no second processor), and remote reads. The ID is read-only, the arbitration priority 0.
///
/// After power-up LINT0 is ExtINT and LINT1 is NMI, both unmasked, as PC firmware leaves the boot processor: the 8259
/// works with no set-up. All else is the state of SDM Vol. 3A, 11.4.7.1.
public struct LocalAPIC: Device {
    /// Where the page lies after power-up.
    public static let defaultAddress = GuestPhysicalAddress(0xfee0_0000)

    /// IA32_APIC_BASE (SDM Vol. 3A, 11.4.4).
    package enum Base {
        package static let bootProcessor: UInt64 = 1 << 8
        package static let x2APIC: UInt64 = 1 << 10
        package static let enable: UInt64 = 1 << 11
        package static let addressMask: UInt64 = 0x000f_ffff_ffff_f000
        package static let reset: UInt64 = defaultAddress.rawValue | enable | bootProcessor
    }

    /// Spurious-interrupt vector register (SDM Vol. 3A, 11.9).
    enum SVR {
        static let vectorMask: UInt32 = 0xff
        static let enable: UInt32 = 1 << 8
        static let suppressEOIBroadcast: UInt32 = 1 << 12
        static let writable = vectorMask | enable | suppressEOIBroadcast
    }

    /// Error status register (SDM Vol. 3A, 11.5.3).
    package enum ESR {
        package static let sendIllegalVector: UInt32 = 1 << 5
        package static let receiveIllegalVector: UInt32 = 1 << 6
        package static let illegalRegisterAddress: UInt32 = 1 << 7
    }

    /// Local vector table entries (SDM Vol. 3A, 11.5.1).
    enum LVT {
        static let vectorMask: UInt32 = 0xff
        static let deliveryModeMask: UInt32 = 0b111 << 8
        static let deliveryStatus: UInt32 = 1 << 12
        static let activeLow: UInt32 = 1 << 13
        static let remoteIRR: UInt32 = 1 << 14
        static let levelTriggered: UInt32 = 1 << 15
        static let masked: UInt32 = 1 << 16
        static let periodic: UInt32 = 1 << 17
        static let modeExtINT: UInt32 = 0b111 << 8
        static let modeNMI: UInt32 = 0b100 << 8

        static let timerWritable = vectorMask | masked | periodic
        static let sensorWritable = vectorMask | deliveryModeMask | masked
        static let pinWritable = vectorMask | deliveryModeMask | activeLow | levelTriggered | masked
        static let errorWritable = vectorMask | masked
        static let readOnly = deliveryStatus | remoteIRR
    }

    /// The local vector table.
    public struct VectorTable: Codable, Equatable, Sendable {
        public internal(set) var timer = LVT.masked
        public internal(set) var thermal = LVT.masked
        public internal(set) var performance = LVT.masked
        public internal(set) var lint0 = LVT.modeExtINT
        public internal(set) var lint1 = LVT.modeNMI
        public internal(set) var error = LVT.masked

        mutating func maskAll() {
            timer |= LVT.masked
            thermal |= LVT.masked
            performance |= LVT.masked
            lint0 |= LVT.masked
            lint1 |= LVT.masked
            error |= LVT.masked
        }
    }

    /// Version 0x14, highest LVT entry 5, EOI-broadcast suppression (SDM Vol. 3A, 11.4.8).
    public static let version: UInt32 = 0x14 | 5 << 16 | 1 << 24
    /// Vectors below this one are reserved for exceptions and illegal in the APIC (SDM Vol. 3A, 11.5.2).
    static let lowestLegalVector: UInt8 = 16

    // Fixed for the life of the machine.
    public let id: UInt8
    public let physicalAddressBits: UInt8
    public let offersX2APIC: Bool

    /// IA32_APIC_BASE.
    public internal(set) var base = Base.reset

    // Registers.
    public internal(set) var taskPriority: UInt8 = 0
    var logicalDestination: UInt32 = 0
    var destinationFormat: UInt32 = 0xffff_ffff
    public internal(set) var spuriousVector: UInt32 = 0xff
    public internal(set) var inService = VectorSet()
    public internal(set) var triggerMode = VectorSet()
    public package(set) var requests = VectorSet()
    /// The ESR as the guest reads it.
    var errorStatus: UInt32 = 0
    /// Errors since the last write to the ESR, which makes them readable.
    var pendingErrors: UInt32 = 0
    var interruptCommand: UInt64 = 0
    public internal(set) var localVectors = VectorTable()
    public internal(set) var timer = LocalAPICTimer()

    // Wires.
    /// The level of the LINT0 input, which a PC connects to the 8259's INTR.
    public internal(set) var lint0Level = false
    /// The level of the LINT1 input, which a PC connects to NMI.
    public internal(set) var lint1Level = false
    /// An NMI waits for the processor.
    public package(set) var isNMIPending = false
    /// An INIT waits for the processor.
    public internal(set) var isInitPending = false
    /// The vector of a level-triggered interrupt whose EOI the I/O APIC has not been told yet.
    public internal(set) var endedLevelVector: UInt8?

    /// A local APIC after power-up.
    ///
    /// - Parameters:
    ///   - physicalAddressBits: MAXPHYADDR, up to 52; IA32_APIC_BASE bits above it are reserved.
    ///   - offersX2APIC: whether CPUID announces x2APIC; without it, IA32_APIC_BASE.EXTD is reserved.
    public init(id: UInt8 = 0, physicalAddressBits: UInt8 = 40, offersX2APIC: Bool = true) {
        self.id = id
        self.physicalAddressBits = physicalAddressBits
        self.offersX2APIC = offersX2APIC
    }

    // MARK: Modes

    /// True unless IA32_APIC_BASE has switched the local APIC off.
    @inline(__always) public var isEnabled: Bool { base & Base.enable != 0 }
    @inline(__always) public var isX2APIC: Bool { base & (Base.enable | Base.x2APIC) == Base.enable | Base.x2APIC }
    /// Enabled in IA32_APIC_BASE and in the spurious-interrupt vector register: fixed interrupts are accepted.
    @inline(__always) public var isSoftwareEnabled: Bool { isEnabled && spuriousVector & SVR.enable != 0 }

    /// The register page, nil where the local APIC has none: disabled, or in x2APIC mode.
    public var page: GuestPhysicalAddress? {
        isEnabled && !isX2APIC ? GuestPhysicalAddress(base & Base.addressMask) : nil
    }

    /// Resets the registers as INIT does, which keeps the ID and IA32_APIC_BASE (SDM Vol. 3A, 11.4.7.3).
    public mutating func resetRegisters() {
        taskPriority = 0
        logicalDestination = 0
        destinationFormat = 0xffff_ffff
        spuriousVector = 0xff
        inService = VectorSet()
        triggerMode = VectorSet()
        requests = VectorSet()
        errorStatus = 0
        pendingErrors = 0
        interruptCommand = 0
        localVectors = VectorTable()
        timer = LocalAPICTimer()
        endedLevelVector = nil
    }

    // MARK: Priorities (SDM Vol. 3A, 11.8.3)

    /// The processor-priority register.
    public var processorPriority: UInt8 { processorPriority(tpr: taskPriority) }

    @inline(__always) func processorPriority(tpr: UInt8) -> UInt8 {
        let inServiceClass = (inService.highest ?? 0) & 0xf0
        return tpr & 0xf0 >= inServiceClass ? tpr : inServiceClass
    }

    /// The vector that the processor would get now if its task priority was `tpr`.
    ///
    /// Requests that were accepted before software disabled the APIC are still deliverable (SDM Vol. 3A, 11.4.7.2).
    @inline(__always) public func deliverableVector(tpr: UInt8) -> UInt8? {
        guard let vector = requests.highest, isEnabled, vector & 0xf0 > processorPriority(tpr: tpr) & 0xf0 else {
            return nil
        }
        return vector
    }

    /// Moves the deliverable vector into service and returns it; the spurious vector if there is none, which changes
    /// nothing and wants no EOI (SDM Vol. 3A, 11.9).
    public mutating func acknowledge(tpr: UInt8) -> UInt8 {
        guard let vector = deliverableVector(tpr: tpr) else {
            return UInt8(truncatingIfNeeded: spuriousVector & SVR.vectorMask)
        }
        requests[vector] = false
        inService[vector] = true
        return vector
    }

    /// Ends the interrupt of highest priority in service (SDM Vol. 3A, 11.8.5).
    mutating func endOfInterrupt() {
        guard let vector = inService.highest else { return }
        inService[vector] = false
        guard triggerMode[vector] else { return }
        if spuriousVector & SVR.suppressEOIBroadcast == 0 {
            endedLevelVector = vector
        }
        if UInt8(truncatingIfNeeded: localVectors.lint0 & LVT.vectorMask) == vector {
            localVectors.lint0 &= ~LVT.remoteIRR
            sampleLevelOfLINT0()
        }
    }

    /// The vector to broadcast to the I/O APICs after an EOI, once.
    public mutating func takeEndedLevelVector() -> UInt8? {
        defer { endedLevelVector = nil }
        return endedLevelVector
    }

    // MARK: Inputs

    /// Sets the LINT0 input. With the APIC disabled the pin is INTR, which has no state of its own here.
    public mutating func setLINT0(_ level: Bool) {
        let rises = level && !lint0Level
        lint0Level = level
        guard isEnabled else { return }
        if isLINT0LevelTriggered {
            sampleLevelOfLINT0()
        } else if rises {
            trigger(localVectors.lint0)
        }
    }

    /// Sets the LINT1 input. With the APIC disabled the pin is NMI. It knows edges only (SDM Vol. 3A, 11.5.1).
    public mutating func setLINT1(_ level: Bool) {
        let rises = level && !lint1Level
        lint1Level = level
        guard rises else { return }
        if isEnabled {
            trigger(localVectors.lint1)
        } else {
            isNMIPending = true
        }
    }

    /// Whether the 8259's INTR reaches the processor through LINT0, or directly past a disabled APIC.
    @inline(__always) public var passesExtINT: Bool {
        !isEnabled || localVectors.lint0 & (LVT.masked | LVT.deliveryModeMask) == LVT.modeExtINT
    }

    private var isLINT0LevelTriggered: Bool {
        localVectors.lint0 & (LVT.levelTriggered | LVT.deliveryModeMask) == LVT.levelTriggered
    }

    /// Requests a level-triggered LINT0 interrupt if the pin is high and its last interrupt has ended.
    mutating func sampleLevelOfLINT0() {
        guard lint0Level, isSoftwareEnabled, isLINT0LevelTriggered,
            localVectors.lint0 & (LVT.masked | LVT.remoteIRR) == 0
        else { return }
        localVectors.lint0 |= LVT.remoteIRR
        accept(UInt8(truncatingIfNeeded: localVectors.lint0 & LVT.vectorMask), isLevelTriggered: true)
    }

    /// Delivers an edge on the source of an LVT entry.
    mutating func trigger(_ entry: UInt32) {
        guard entry & LVT.masked == 0 else { return }
        switch DeliveryMode(bits10to8: UInt64(entry)) {
        case .fixed: accept(UInt8(truncatingIfNeeded: entry & LVT.vectorMask), isLevelTriggered: false)
        case .nmi: isNMIPending = true
        case .initialise: isInitPending = true
        case .extINT, .smi, .lowestPriority, .startUp, .reserved: break
        }
    }

    /// Puts a fixed interrupt into the IRR, if the APIC is software-enabled and the vector legal.
    mutating func accept(_ vector: UInt8, isLevelTriggered: Bool) {
        guard isSoftwareEnabled else { return }
        guard vector >= Self.lowestLegalVector else { return raise(error: ESR.receiveIllegalVector) }
        requests[vector] = true
        triggerMode[vector] = isLevelTriggered
    }

    /// Logs an error. The error interrupt fires for the first one after a write to the ESR (SDM Vol. 3A, 11.5.3).
    mutating func raise(error: UInt32) {
        let isFirst = pendingErrors == 0
        pendingErrors |= error
        if isFirst { trigger(localVectors.error & ~LVT.deliveryModeMask) }
    }

    // MARK: Messages

    /// Whether a message from an I/O APIC is for this processor.
    public func isDestination(of message: InterruptMessage) -> Bool {
        let isBroadcast = message.destination == 0xff
        let destination: UInt32 = isX2APIC && isBroadcast ? 0xffff_ffff : UInt32(message.destination)
        return isDestination(destination, isLogical: message.isLogical)
    }

    /// Whether a destination field means this processor (SDM Vol. 3A, 11.6.2 and 11.12.10).
    func isDestination(_ destination: UInt32, isLogical: Bool) -> Bool {
        if isX2APIC {
            if destination == 0xffff_ffff { return true }
            guard isLogical else { return destination == UInt32(id) }
            let own = x2APICLogicalID
            return destination >> 16 == own >> 16 && destination & own & 0xffff != 0
        }
        let field = destination & 0xff
        if field == 0xff { return true }
        guard isLogical else { return field == UInt32(id) }
        let own = logicalDestination >> 24
        switch destinationFormat >> 28 {
        case 0b1111: return field & own != 0
        case 0b0000: return (field >> 4 == own >> 4 || field >> 4 == 0xf) && field & own & 0xf != 0
        default: return false
        }
    }

    var x2APICLogicalID: UInt32 {
        UInt32(id >> 4) &<< 16 | 1 &<< UInt32(id & 0xf)
    }

    /// Takes a message from an I/O APIC; false if it is not for this processor or can't be taken now.
    public mutating func receive(_ message: InterruptMessage) -> Bool {
        guard isEnabled, isDestination(of: message) else { return false }
        switch message.mode {
        case .fixed, .lowestPriority:
            guard isSoftwareEnabled else { return false }
            accept(message.vector, isLevelTriggered: message.isLevelTriggered)
        case .nmi: isNMIPending = true
        case .smi, .initialise, .extINT, .startUp, .reserved: break
        }
        return true
    }

    /// Sends what the ICR says (SDM Vol. 3A, 11.6.1). With one processor, all that can arrive is a message to itself.
    mutating func sendInterprocessorInterrupt() {
        let command = UInt32(truncatingIfNeeded: interruptCommand)
        let vector = UInt8(truncatingIfNeeded: command & ICR.vectorMask)
        let mode = DeliveryMode(bits10to8: UInt64(command))
        if mode == .fixed || mode == .lowestPriority, vector < Self.lowestLegalVector {
            return raise(error: ESR.sendIllegalVector)
        }
        let field = UInt32(truncatingIfNeeded: interruptCommand >> 32)
        let reachesSelf =
            switch (command & ICR.shorthandMask) >> ICR.shorthandShift {
            case 0b00: isDestination(isX2APIC ? field : field >> 24, isLogical: command & ICR.logical != 0)
            case 0b01, 0b10: true
            default: false
            }
        guard reachesSelf else { return }
        switch mode {
        case .fixed, .lowestPriority: accept(vector, isLevelTriggered: false)
        case .nmi: isNMIPending = true
        case .initialise:
            let isDeassert = command & (ICR.levelTriggered | ICR.assert) == ICR.levelTriggered
            if !isDeassert { isInitPending = true }
        case .smi, .startUp, .extINT, .reserved: break
        }
    }

    // MARK: Time

    private var isTimerPeriodic: Bool { localVectors.timer & LVT.periodic != 0 }

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? {
        guard localVectors.timer & LVT.masked == 0, let expiry = timer.expiry else { return nil }
        if expiry > now { return expiry }
        return Nanoseconds(now.rawValue == .max ? .max : now.rawValue &+ 1)
    }

    public mutating func advance(to now: Nanoseconds) {
        guard timer.isRunning, timer.advance(to: now, isPeriodic: isTimerPeriodic) else { return }
        trigger(localVectors.timer & ~LVT.deliveryModeMask)
    }
}
