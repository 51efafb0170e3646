extension LocalAPIC {
    /// Register offsets in the xAPIC page; the x2APIC MSR is 0x800 + offset / 16 (SDM Vol. 3A, tables 11-1 and 11-6).
    package enum Register {
        package static let id: UInt32 = 0x020
        package static let version: UInt32 = 0x030
        package static let taskPriority: UInt32 = 0x080
        package static let arbitrationPriority: UInt32 = 0x090
        package static let processorPriority: UInt32 = 0x0a0
        package static let endOfInterrupt: UInt32 = 0x0b0
        package static let remoteRead: UInt32 = 0x0c0
        package static let logicalDestination: UInt32 = 0x0d0
        package static let destinationFormat: UInt32 = 0x0e0
        package static let spuriousVector: UInt32 = 0x0f0
        package static let inService: UInt32 = 0x100
        package static let triggerMode: UInt32 = 0x180
        package static let interruptRequest: UInt32 = 0x200
        package static let errorStatus: UInt32 = 0x280
        package static let interruptCommandLow: UInt32 = 0x300
        package static let interruptCommandHigh: UInt32 = 0x310
        package static let lvtTimer: UInt32 = 0x320
        package static let lvtThermal: UInt32 = 0x330
        package static let lvtPerformance: UInt32 = 0x340
        package static let lvtLINT0: UInt32 = 0x350
        package static let lvtLINT1: UInt32 = 0x360
        package static let lvtError: UInt32 = 0x370
        package static let initialCount: UInt32 = 0x380
        package static let currentCount: UInt32 = 0x390
        package static let divideConfiguration: UInt32 = 0x3e0
        /// x2APIC only.
        package static let selfIPI: UInt32 = 0x3f0
    }

    /// Interrupt command register (SDM Vol. 3A, 11.6.1).
    enum ICR {
        static let vectorMask: UInt32 = 0xff
        static let logical: UInt32 = 1 << 11
        static let assert: UInt32 = 1 << 14
        static let levelTriggered: UInt32 = 1 << 15
        static let shorthandShift: UInt32 = 18
        static let shorthandMask: UInt32 = 0b11 << 18
        /// All but the delivery status, which is always idle, and the reserved bits.
        static let writable: UInt32 = 0x000c_cfff
    }

    public static let msrBase: UInt32 = 0x1b
    public static let msrX2APIC: ClosedRange<UInt32> = 0x800...0x8ff

    // MARK: xAPIC

    /// Reads from the register page.
    ///
    /// As in KVM, the four bytes of a register may be read in parts; the twelve bytes after them are 0, and so is the
    /// upper half of an 8-byte read. A reserved register reads 0 and is an error in the ESR.
    public mutating func readMMIO(offset: UInt32, size: Int, at now: Nanoseconds) -> UInt64 {
        advance(to: now)
        let start = offset & 0xf
        guard start < 4 else { return 0 }
        guard let value = readRegister(offset & 0xff0, at: now) else {
            raise(error: ESR.illegalRegisterAddress)
            return 0
        }
        let shifted = UInt64(value) &>> UInt64(start &* 8)
        return size >= 4 ? shifted : shifted & (1 &<< UInt64(max(size, 0) &* 8) &- 1)
    }

    /// Writes to the register page. As in KVM, only aligned writes of 4 bytes count; of 8 bytes, the low half.
    public mutating func writeMMIO(offset: UInt32, size: Int, value: UInt64, at now: Nanoseconds) {
        advance(to: now)
        guard size >= 4, offset & 0xf == 0 else { return }
        let register = offset & 0xff0
        let value = UInt32(truncatingIfNeeded: value)
        switch register {
        case Register.logicalDestination: logicalDestination = value & 0xff00_0000
        case Register.destinationFormat: destinationFormat = value | 0x0fff_ffff
        case Register.interruptCommandLow:
            interruptCommand = interruptCommand & ~0xffff_ffff | UInt64(value & ICR.writable)
            sendInterprocessorInterrupt()
        case Register.interruptCommandHigh:
            interruptCommand = interruptCommand & 0xffff_ffff | UInt64(value & 0xff00_0000) &<< 32
        default:
            if !writeRegister(register, value, at: now), !isReadOnly(register) {
                raise(error: ESR.illegalRegisterAddress)
            }
        }
    }

    /// A register of the xAPIC page, nil where it is reserved. Write-only registers read 0.
    private func readRegister(_ register: UInt32, at now: Nanoseconds) -> UInt32? {
        switch register {
        case Register.id: UInt32(id) &<< 24
        case Register.arbitrationPriority, Register.endOfInterrupt, Register.remoteRead: 0
        case Register.logicalDestination: logicalDestination
        case Register.destinationFormat: destinationFormat
        case Register.interruptCommandLow: UInt32(truncatingIfNeeded: interruptCommand)
        case Register.interruptCommandHigh: UInt32(truncatingIfNeeded: interruptCommand >> 32)
        default: readSharedRegister(register, at: now)
        }
    }

    private func isReadOnly(_ register: UInt32) -> Bool {
        switch register {
        case Register.id, Register.version, Register.arbitrationPriority, Register.processorPriority,
            Register.remoteRead, Register.currentCount:
            true
        default: (Register.inService..<Register.errorStatus).contains(register)
        }
    }

    // MARK: x2APIC

    /// Reads IA32_APIC_BASE or an x2APIC register; nil is #GP (SDM Vol. 3A, 11.12.1).
    public mutating func readMSR(_ index: UInt32, at now: Nanoseconds) -> UInt64? {
        if index == Self.msrBase { return base }
        guard isX2APIC, Self.msrX2APIC.contains(index) else { return nil }
        advance(to: now)
        let register = (index &- Self.msrX2APIC.lowerBound) &<< 4
        switch register {
        case Register.id: return UInt64(id)
        case Register.logicalDestination: return UInt64(x2APICLogicalID)
        case Register.interruptCommandLow: return interruptCommand
        default: return readSharedRegister(register, at: now).map(UInt64.init)
        }
    }

    /// Writes IA32_APIC_BASE or an x2APIC register; false is #GP (SDM Vol. 3A, 11.12.1).
    public mutating func writeMSR(_ index: UInt32, _ value: UInt64, at now: Nanoseconds) -> Bool {
        advance(to: now)
        if index == Self.msrBase { return writeBase(value) }
        guard isX2APIC, Self.msrX2APIC.contains(index) else { return false }
        let register = (index &- Self.msrX2APIC.lowerBound) &<< 4
        if register == Register.interruptCommandLow {
            guard UInt32(truncatingIfNeeded: value) & ~ICR.writable == 0 else { return false }
            interruptCommand = value
            sendInterprocessorInterrupt()
            return true
        }
        guard value >> 32 == 0, let allowed = x2APICWritableBits(register) else { return false }
        let low = UInt32(truncatingIfNeeded: value)
        guard low & ~allowed == 0 else { return false }
        if register == Register.selfIPI {
            sendSelfIPI(UInt8(truncatingIfNeeded: low))
            return true
        }
        return writeRegister(register, low, at: now)
    }

    /// Writes IA32_APIC_BASE; false for a reserved bit or an illegal transition (SDM Vol. 3A, 11.12.5).
    private mutating func writeBase(_ value: UInt64) -> Bool {
        let addressLimit: UInt64 = 1 &<< UInt64(min(physicalAddressBits, 52))
        let modes = Base.enable | (offersX2APIC ? Base.x2APIC : 0)
        let allowed = Base.addressMask & (addressLimit &- 1) | Base.bootProcessor | modes
        guard value & ~allowed == 0 else { return false }

        let old = base & (Base.enable | Base.x2APIC)
        let new = value & (Base.enable | Base.x2APIC)
        switch (old, new) {
        case (_, Base.x2APIC), (0, Base.enable | Base.x2APIC), (Base.enable | Base.x2APIC, Base.enable): return false
        default: break
        }
        base = value & ~Base.bootProcessor | base & Base.bootProcessor
        if new == 0, old != 0 {
            resetRegisters()
        } else if new != old, new & Base.x2APIC != 0 {
            interruptCommand &= 0xffff_ffff
        }
        return true
    }

    /// The bits of an x2APIC register that a write may set, nil where a write is #GP whatever its value.
    private func x2APICWritableBits(_ register: UInt32) -> UInt32? {
        switch register {
        case Register.endOfInterrupt, Register.errorStatus: 0
        case Register.taskPriority, Register.selfIPI: 0xff
        case Register.spuriousVector: SVR.writable
        case Register.lvtTimer: LVT.timerWritable | LVT.deliveryStatus
        case Register.lvtThermal, Register.lvtPerformance: LVT.sensorWritable | LVT.deliveryStatus
        case Register.lvtLINT0, Register.lvtLINT1: LVT.pinWritable | LVT.readOnly
        case Register.lvtError: LVT.errorWritable | LVT.deliveryStatus
        case Register.initialCount: .max
        case Register.divideConfiguration: LocalAPICTimer.divideConfigurationBits
        default: nil
        }
    }

    /// SDM Vol. 3A, 11.12.11.
    private mutating func sendSelfIPI(_ vector: UInt8) {
        if vector < Self.lowestLegalVector {
            raise(error: ESR.sendIllegalVector)
        } else {
            accept(vector, isLevelTriggered: false)
        }
    }

    // MARK: Both

    private func readSharedRegister(_ register: UInt32, at now: Nanoseconds) -> UInt32? {
        switch register {
        case Register.version: Self.version
        case Register.taskPriority: UInt32(taskPriority)
        case Register.processorPriority: UInt32(processorPriority)
        case Register.spuriousVector: spuriousVector
        case Register.inService..<Register.triggerMode: inService.register(Self.bankIndex(register))
        case Register.triggerMode..<Register.interruptRequest: triggerMode.register(Self.bankIndex(register))
        case Register.interruptRequest..<Register.errorStatus: requests.register(Self.bankIndex(register))
        case Register.errorStatus: errorStatus
        case Register.lvtTimer: localVectors.timer
        case Register.lvtThermal: localVectors.thermal
        case Register.lvtPerformance: localVectors.performance
        case Register.lvtLINT0: localVectors.lint0
        case Register.lvtLINT1: localVectors.lint1
        case Register.lvtError: localVectors.error
        case Register.initialCount: timer.initialCount
        case Register.currentCount: timer.currentCount(at: now)
        case Register.divideConfiguration: timer.divideConfiguration
        default: nil
        }
    }

    private static func bankIndex(_ register: UInt32) -> UInt8 { UInt8(truncatingIfNeeded: (register >> 4) & 7) }

    /// Writes a register that means the same in both modes; false if `register` is none.
    private mutating func writeRegister(_ register: UInt32, _ value: UInt32, at now: Nanoseconds) -> Bool {
        switch register {
        case Register.taskPriority: taskPriority = UInt8(truncatingIfNeeded: value)
        case Register.endOfInterrupt: endOfInterrupt()
        case Register.spuriousVector:
            spuriousVector = value & SVR.writable
            if isSoftwareEnabled { sampleLevelOfLINT0() } else { localVectors.maskAll() }
        case Register.errorStatus:
            errorStatus = pendingErrors
            pendingErrors = 0
        case Register.lvtTimer: localVectors.timer = entry(value & LVT.timerWritable)
        case Register.lvtThermal: localVectors.thermal = entry(value & LVT.sensorWritable)
        case Register.lvtPerformance: localVectors.performance = entry(value & LVT.sensorWritable)
        case Register.lvtLINT0: writeLINT0(value)
        case Register.lvtLINT1: localVectors.lint1 = entry(value & LVT.pinWritable)
        case Register.lvtError: localVectors.error = entry(value & LVT.errorWritable)
        case Register.initialCount: timer.start(value, at: now)
        case Register.divideConfiguration: timer.setDivideConfiguration(value, at: now)
        default: return false
        }
        return true
    }

    private mutating func writeLINT0(_ value: UInt32) {
        let remoteIRR = value & LVT.levelTriggered != 0 ? localVectors.lint0 & LVT.remoteIRR : 0
        localVectors.lint0 = entry(value & LVT.pinWritable) | remoteIRR
        sampleLevelOfLINT0()
    }

    /// An LVT entry as it is stored: masked while software has the APIC disabled (SDM Vol. 3A, 11.4.7.2).
    private func entry(_ value: UInt32) -> UInt32 {
        isSoftwareEnabled ? value : value | LVT.masked
    }
}
