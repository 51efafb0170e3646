import VMCore

extension LocalAPIC {
    /// A local APIC that software has enabled, with spurious vector 0xff.
    static func enabled() -> LocalAPIC {
        var apic = LocalAPIC()
        apic.set(Register.spuriousVector, 0x1ff)
        return apic
    }

    /// An enabled local APIC in x2APIC mode.
    static func enabledX2APIC() -> LocalAPIC {
        var apic = enabled()
        _ = apic.writeMSR(0x1b, Base.reset | Base.x2APIC, at: Nanoseconds(0))
        return apic
    }

    mutating func set(_ register: UInt32, _ value: UInt32, at now: UInt64 = 0) {
        writeMMIO(offset: register, size: 4, value: UInt64(value), at: Nanoseconds(now))
    }

    mutating func get(_ register: UInt32, at now: UInt64 = 0) -> UInt32 {
        UInt32(readMMIO(offset: register, size: 4, at: Nanoseconds(now)))
    }

    mutating func send(_ low: UInt32, to destination: UInt32 = 0) {
        set(Register.interruptCommandHigh, destination << 24)
        set(Register.interruptCommandLow, low)
    }

    /// Latches and returns the errors since the last call.
    mutating func errors() -> UInt32 {
        set(Register.errorStatus, 0)
        return get(Register.errorStatus)
    }
}
