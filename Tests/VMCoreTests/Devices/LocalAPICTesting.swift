@testable import VMCore

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

    static func randomAccesses(
        _ apic: inout LocalAPIC, _ generator: inout SeededGenerator, from: Nanoseconds, count: Int
    ) -> [UInt64] {
        var now = from
        return (0..<count).map { _ in
            now = now + Nanoseconds(generator.chance(1, in: 8) ? generator.below(1 << 34) : generator.below(2_000))
            let offset = UInt32(
                generator.chance(7, in: 8) ? generator.below(0x40) * 0x10 : generator.below(0x1100))
            let msr = UInt32(
                generator.chance(15, in: 16) ? 0x800 + generator.below(0x40) : generator.below(0xa00))
            switch generator.below(16) {
            case 0, 1: return apic.readMMIO(offset: offset, size: Int(generator.below(10)), at: now)
            case 2, 3, 4, 5:
                let size = generator.chance(7, in: 8) ? 4 : Int(generator.below(10))
                apic.writeMMIO(offset: offset, size: size, value: generator.value(), at: now)
                return 0
            case 6: return apic.readMSR(msr, at: now) ?? 0xbad
            case 7: return apic.writeMSR(msr, generator.value(), at: now) ? 1 : 0
            case 8:
                guard generator.chance(1, in: 8) else { return 0 }
                let base = 0xfee0_0000 | generator.below(4) << 10
                return apic.writeMSR(0x1b, base, at: now) ? 1 : 0
            case 9:
                apic.set(Register.spuriousVector, 0x1ff, at: now.rawValue)
                return 0
            case 10:
                apic.setLINT0(generator.chance(1, in: 2))
                return 0
            case 11:
                apic.setLINT1(generator.chance(1, in: 2))
                return apic.isNMIPending ? 1 : 0
            case 12:
                let message = InterruptMessage(
                    destination: UInt8(generator.below(256)) & (generator.chance(1, in: 2) ? 0 : 0xff),
                    isLogical: generator.chance(1, in: 4), mode: DeliveryMode(bits10to8: generator.next()),
                    vector: UInt8(generator.below(256)), isLevelTriggered: generator.chance(1, in: 2))
                return apic.receive(message) ? 1 : 0
            case 13: return UInt64(apic.acknowledge(tpr: UInt8(generator.below(16)) << 4))
            case 14:
                apic.set(Register.endOfInterrupt, 0, at: now.rawValue)
                return UInt64(apic.takeEndedLevelVector() ?? 0)
            default:
                apic.advance(to: now)
                return apic.nextDeadline(after: now)?.rawValue ?? 0
            }
        }
    }
}
