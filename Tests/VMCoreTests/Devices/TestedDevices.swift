import Testing
import VMCore

// The devices under the generic tests, each with its random access.

let testedDevices: [any TestedDevice.Type] = [
    PIC8259Pair.self, IOAPIC.self, LocalAPIC.self, InterruptFabric.self, PIT8254.self, RTC146818.self, UART16550A.self,
    I8042.self, SystemPorts.self, ACPIPowerManagement.self, FirmwareConfig.self, TestDevice.self, DebugPorts.self,
    HPET.self, Chipset.self,
]

// MARK: Interrupt controllers

extension PIC8259Pair: TestedDevice {
    static var specimens: [Self] { [Self()] }

    private static let ports: [UInt16] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x1f, 0xffff]

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        let port = generator.pick(Self.ports)
        switch generator.next(below: 5) {
        case 0: return UInt64(read(offset: port, size: Int(generator.next(below: 6)), at: now))
        case 1, 2:
            let value = UInt32(truncatingIfNeeded: generator.value())
            write(offset: port, size: Int(generator.next(below: 6)), value: value, at: now)
            return 0
        case 3:
            setLine(Int(generator.next(below: 18)) - 1, level: generator.chance(1, in: 2))
            return output ? 1 : 0
        default:
            return output || generator.chance(1, in: 8) ? UInt64(acknowledge()) : 0
        }
    }
}

extension IOAPIC: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        let offset = UInt32(
            generator.chance(3, in: 4) ? generator.next(below: 5) * 0x10 : generator.next(below: 0x1000))
        let size = Int(generator.next(below: 10))
        switch generator.next(below: 6) {
        case 0: return readMMIO(offset: offset, size: size, at: now)
        case 1, 2: writeMMIO(offset: offset, size: size, value: generator.value(), at: now)
        case 3:
            writeMMIO(offset: 0, size: 4, value: 0x10 + generator.next(below: 0x30), at: now)
            writeMMIO(offset: 0x10, size: 4, value: generator.value() & 0x1ffff, at: now)
        case 4: setPin(Int(generator.next(below: 26)) - 1, level: generator.chance(1, in: 2))
        default:
            for pin in 0..<32 where requests & (1 << UInt32(pin)) != 0 {
                finish(pin, accepted: generator.chance(3, in: 4))
            }
            endOfInterrupt(UInt8(generator.next(below: 256)))
        }
        return UInt64(requests)
    }
}

extension LocalAPIC: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        let offset = UInt32(
            generator.chance(7, in: 8) ? generator.next(below: 0x40) * 0x10 : generator.next(below: 0x1100))
        let msr = UInt32(
            generator.chance(15, in: 16) ? 0x800 + generator.next(below: 0x40) : generator.next(below: 0xa00))
        switch generator.next(below: 16) {
        case 0, 1: return readMMIO(offset: offset, size: Int(generator.next(below: 10)), at: now)
        case 2, 3, 4, 5:
            let size = generator.chance(7, in: 8) ? 4 : Int(generator.next(below: 10))
            writeMMIO(offset: offset, size: size, value: generator.value(), at: now)
            return 0
        case 6: return readMSR(msr, at: now) ?? 0xbad
        case 7: return writeMSR(msr, generator.value(), at: now) ? 1 : 0
        case 8:
            guard generator.chance(1, in: 8) else { return 0 }
            return writeMSR(0x1b, 0xfee0_0000 | generator.next(below: 4) << 10, at: now) ? 1 : 0
        case 9:
            set(Register.spuriousVector, 0x1ff, at: now.rawValue)
            return 0
        case 10:
            setLINT0(generator.chance(1, in: 2))
            return 0
        case 11:
            setLINT1(generator.chance(1, in: 2))
            return isNMIPending ? 1 : 0
        case 12:
            let mode = DeliveryMode(rawValue: UInt8(generator.next(below: 8)))!
            let message = InterruptMessage(
                destination: UInt8(generator.next(below: 256)) & (generator.chance(1, in: 2) ? 0 : 0xff),
                isLogical: generator.chance(1, in: 4), mode: mode,
                vector: UInt8(generator.next(below: 256)), isLevelTriggered: generator.chance(1, in: 2))
            return receive(message) ? 1 : 0
        case 13: return UInt64(acknowledge(tpr: UInt8(generator.next(below: 16)) << 4))
        case 14:
            set(Register.endOfInterrupt, 0, at: now.rawValue)
            return UInt64(takeEndedLevelVector() ?? 0)
        default:
            advance(to: now)
            return nextDeadline(after: now)?.rawValue ?? 0
        }
    }
}

extension InterruptFabric: TestedDevice {
    static var specimens: [Self] { [Self()] }

    private static let lapic: UInt64 = 0xfee0_0000
    private static let ioapic: UInt64 = 0xfec0_0000
    private static let ports: [UInt16] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x1f, 0xffff]

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        let size = generator.chance(3, in: 4) ? 4 : Int(generator.next(below: 10))
        let page = generator.chance(1, in: 2) ? Self.lapic : Self.ioapic
        let offset = generator.chance(7, in: 8) ? generator.next(below: 0x40) * 0x10 : generator.next(below: 0x1100)
        let address = GuestPhysicalAddress(generator.chance(63, in: 64) ? page + offset : generator.next())
        let msr = generator.chance(15, in: 16) ? 0x800 + UInt32(generator.next(below: 0x40)) : 0x1b
        let port = generator.pick(Self.ports)
        switch generator.next(below: 16) {
        case 0: return readMMIO(address: address, size: size, at: now)
        case 1, 2, 3: writeMMIO(address: address, size: size, value: generator.value(), at: now)
        case 4: return readMSR(msr, at: now) ?? 0xbad
        case 5: return writeMSR(msr, value: generator.value(), at: now) ? 1 : 0
        case 6:
            guard generator.chance(1, in: 8) else { return 0 }
            return writeMSR(0x1b, value: 0xfee0_0000 | generator.next(below: 4) << 10, at: now) ? 1 : 0
        case 7:
            writeMMIO(address: GuestPhysicalAddress(Self.lapic + 0xf0), size: 4, value: 0x1ff, at: now)
            let select = 0x10 + generator.next(below: 0x30)
            writeMMIO(address: GuestPhysicalAddress(Self.ioapic), size: 4, value: select, at: now)
            let value = generator.next() & 0x8fff
            writeMMIO(address: GuestPhysicalAddress(Self.ioapic + 0x10), size: 4, value: value, at: now)
        case 8: return UInt64(read(offset: port, size: Int(generator.next(below: 6)), at: now))
        case 9:
            let value = UInt32(truncatingIfNeeded: generator.value())
            write(offset: port, size: Int(generator.next(below: 6)), value: value, at: now)
        case 10: setLine(Int(generator.next(below: 18)) - 1, level: generator.chance(1, in: 2), at: now)
        case 11: setPin(Int(generator.next(below: 26)) - 1, level: generator.chance(1, in: 2), at: now)
        case 12:
            setNMILine(level: generator.chance(1, in: 2), at: now)
            return (takeNMI() ? 1 : 0) | (takeInit() ? 2 : 0)
        case 13:
            tpr = UInt8(generator.next(below: 16)) << 4
            return interruptPending(tpr: tpr) ? 1 : 0
        case 14:
            advance(to: now)
            let tpr = UInt8(generator.next(below: 16)) << 4
            let pending = interruptPending(tpr: tpr)
            let vector = acknowledge(tpr: tpr, at: now)
            #expect(pending == (vector != nil))
            return UInt64(vector ?? 0)
        default:
            advance(to: now)
            return nextDeadline(after: now)?.rawValue ?? 0
        }
        return interruptPending(tpr: 0) ? 1 : 0
    }

    mutating func randomAccessWhenDamaged(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        let page = generator.chance(1, in: 2) ? Self.lapic : Self.ioapic
        let address = GuestPhysicalAddress(page + generator.next(below: 0x40) * 0x10)
        pulse(Int(generator.next(below: 16)), at: now)
        writeMMIO(address: address, size: 4, value: generator.value(), at: now)
        _ = writeMSR(0x800 + UInt32(generator.next(below: 0x40)), value: generator.value(), at: now)
        setPin(Int(generator.next(below: 24)), level: generator.chance(1, in: 2), at: now)
        let vector = generator.chance(1, in: 4) ? acknowledge(tpr: 0, at: now) : nil
        return readMMIO(address: address, size: 4, at: now) ^ UInt64(vector ?? 0)
    }
}

// MARK: Chipset

extension PIT8254: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        switch generator.next(below: 4) {
        case 0: setGate(Int(generator.next(below: 3)), generator.chance(1, in: 2), at: now)
        case 1: return UInt64(takeTicks()) << 1 | (output(Int(generator.next(below: 3)), at: now) ? 1 : 0)
        default: return randomPortAccess(&generator, ports: 4, at: now)
        }
        return 0
    }
}

extension RTC146818: TestedDevice {
    static var specimens: [Self] {
        [Self(startSeconds: 1_700_000_000, memoryBytes: 5 << 30, lowMemoryLimit: 3 << 30)]
    }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        randomPortAccess(&generator, ports: 2, at: now)
    }
}

extension UART16550A: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        switch generator.next(below: 4) {
        case 0: receive(UInt8(truncatingIfNeeded: generator.next()), at: now) ? 1 : 0
        case 1: UInt64(takeOutput().count) << 1 | (irq ? 1 : 0)
        default: randomPortAccess(&generator, ports: 8, at: now)
        }
    }
}

extension I8042: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        randomPortAccess(&generator, ports: 8, at: now)
    }
}

extension SystemPorts: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        randomPortAccess(&generator, ports: generator.chance(1, in: 2) ? 0x100 : 0x1000, at: now)
    }
}

extension ACPIPowerManagement: TestedDevice {
    static var specimens: [Self] { [Self(), Self(isTimer32Bit: false)] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        randomPortAccess(&generator, ports: 16, at: now)
    }
}

extension HPET: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        let timer = 0x100 + 0x20 * generator.next(below: 4)
        let offset = generator.pick([0x10, 0x20, 0xf0, timer, timer, timer + 8, timer + 8, generator.next(below: 0x500)])
        let size = generator.pick([8, 8, 4, 4, 1, 0, -1, 99])
        switch generator.next(below: 8) {
        case 0, 1: return readMMIO(offset: offset, size: size, at: now)
        case 2, 3: writeMMIO(offset: offset, size: size, value: generator.value(), at: now)
        case 4: writeMMIO(offset: 0x10, size: 8, value: generator.next(below: 4), at: now)
        case 5:
            // A match that comes soon.
            let soon = readMMIO(offset: 0xf0, size: 8, at: now) &+ generator.next(below: 100)
            writeMMIO(offset: timer + 8, size: 8, value: soon, at: now)
        case 6: return (0..<3).reduce(0) { $0 << 8 | (output($1) ? 1 : 0) | UInt64(pin($1) ?? 0) << 1 }
        default: return UInt64(takeEdges())
        }
        return hasEdges ? 1 : 0
    }
}

extension FirmwareConfig: TestedDevice {
    static var specimens: [Self] {
        let contents = FirmwareContents(
            memoryBytes: 1 << 30, kernel: .init(address: 0x10_0000, bytes: [1, 2, 3]),
            files: [.init(name: "etc/one", bytes: [9, 8, 7])])
        return [Self(contents: contents)]
    }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        randomPortAccess(&generator, ports: 2, at: now)
    }
}

extension TestDevice: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        randomPortAccess(&generator, ports: generator.chance(1, in: 2) ? 0x100 : 0x2020, at: now)
    }
}

extension DebugPorts: TestedDevice {
    static var specimens: [Self] { [Self()] }

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        writeConsole(UInt8(truncatingIfNeeded: generator.next()))
        return generator.chance(1, in: 2) ? UInt64(takeOutput().count) : 0
    }
}

extension Chipset: TestedDevice {
    static var specimens: [Self] {
        var configuration = ChipsetConfiguration(memoryBytes: 1 << 30, wallClockStart: 1_700_000_000)
        configuration.testDevice = true
        configuration.files = [.init(name: "opt/a", bytes: [1])]
        var withHPET = configuration
        withHPET.hpet = true
        return [Self(configuration), Self(withHPET)]
    }

    private static let ports: [UInt16] = [
        0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xe0, 0xe4, 0xe8, 0xe9, 0xed, 0xf4, 0x3f8, 0x3f9,
        0x3fc, 0x3ff, 0x510, 0x511, 0x600, 0x604, 0x608, 0xcf8, 0xcf9, 0x2000, 0x2017, 0xffff,
    ]

    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        let size = generator.pick([1, 1, 1, 2, 4, 0, 3, -7, 99])
        let port = generator.chance(1, in: 8)
            ? UInt16(truncatingIfNeeded: generator.next()) : generator.pick(Self.ports)
        let address = generator.chance(1, in: 2)
            ? 0xff00_0000 &+ generator.next(below: 0x1_0010) : HPET.address.rawValue &+ generator.next(below: 0x180)
        switch generator.next(below: 9) {
        case 0, 1, 2: return UInt64(readPort(port, size: size, at: now))
        case 3, 4, 5: writePort(port, size: size, value: UInt32(truncatingIfNeeded: generator.next()), at: now)
        case 6: return readMMIO(address, size: size, at: now)
        case 7: writeMMIO(address, size: size, value: generator.next(), at: now)
        default:
            let bytes = takeSerialOutput().count &+ takeDebugOutput().count
            let changes = takeTestLineChanges().reduce(0) { $0 &* 31 &+ $1.gsi &+ ($1.level ? 1 : 0) }
            _ = receiveSerial(UInt8(truncatingIfNeeded: generator.next()), at: now)
            _ = takeRequest()
            if generator.chance(1, in: 200) { reset(at: now) }
            return UInt64(truncatingIfNeeded: bytes &+ changes &* 7 &+ takeTimerTicks()) ^ UInt64(isaLines) << 32
        }
        return 0
    }
}
