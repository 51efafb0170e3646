import Foundation
import Testing

@testable import VMCore

@Suite struct DeviceStateTests {
    static let rtc = RTC146818(startSeconds: 1_700_000_000, memoryBytes: 5 << 30, lowMemoryLimit: 3 << 30)
    static let firmware = FirmwareConfig(
        contents: FirmwareContents(
            memoryBytes: 1 << 30, kernel: .init(address: 0x10_0000, bytes: [1, 2, 3]),
            files: [.init(name: "etc/one", bytes: [9, 8, 7])]))
    static var chipset: Chipset {
        var configuration = ChipsetConfiguration(memoryBytes: 1 << 30, wallClockStart: 1_700_000_000)
        configuration.testDevice = true
        configuration.files = [.init(name: "opt/a", bytes: [1])]
        return Chipset(configuration)
    }

    private static func uartAccess(
        _ uart: inout UART16550A, _ random: inout SeededRandom, _ now: Nanoseconds
    ) -> UInt64 {
        switch random.next() % 4 {
        case 0: uart.receive(UInt8(truncatingIfNeeded: random.next()), at: now) ? 1 : 0
        case 1: UInt64(uart.takeOutput().count) << 1 | (uart.irq ? 1 : 0)
        default: portAccess(ports: 8)(&uart, &random, now)
        }
    }

    private static func pitAccess(_ pit: inout PIT8254, _ random: inout SeededRandom, _ now: Nanoseconds) -> UInt64 {
        switch random.next() % 4 {
        case 0: pit.setGate(Int(random.next(upTo: 3)), random.next() & 1 != 0, at: now)
        case 1: return UInt64(pit.takeTicks()) << 1 | (pit.output(Int(random.next(upTo: 3)), at: now) ? 1 : 0)
        default: return portAccess(ports: 4)(&pit, &random, now)
        }
        return 0
    }

    private static let ports: [UInt16] = [
        0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xe0, 0xe4, 0xe8, 0xe9, 0xed, 0xf4, 0x3f8, 0x3f9,
        0x3fc, 0x3ff, 0x510, 0x511, 0x600, 0x604, 0x608, 0xcf8, 0xcf9, 0x2000, 0x2017, 0xffff,
    ]

    static func chipsetAccess(_ chipset: inout Chipset, _ random: inout SeededRandom, _ now: Nanoseconds) -> UInt64 {
        let size = [1, 1, 1, 2, 4, 0, 3, -7, 99][Int(random.next(upTo: 9))]
        let port = random.next() % 8 == 0
            ? UInt16(truncatingIfNeeded: random.next()) : ports[Int(random.next(upTo: UInt16(ports.count)))]
        let address = 0xff00_0000 &+ random.next() % 0x1_0010
        switch random.next() % 9 {
        case 0, 1, 2: return UInt64(chipset.readPort(port, size: size, at: now))
        case 3, 4, 5: chipset.writePort(port, size: size, value: UInt32(truncatingIfNeeded: random.next()), at: now)
        case 6: return chipset.readMMIO(address, size: size, at: now)
        case 7: chipset.writeMMIO(address, size: size, value: random.next(), at: now)
        default:
            let bytes = chipset.takeSerialOutput().count &+ chipset.takeDebugOutput().count
            let changes = chipset.takeTestLineChanges().reduce(0) { $0 &* 31 &+ $1.gsi &+ ($1.level ? 1 : 0) }
            _ = chipset.receiveSerial(UInt8(truncatingIfNeeded: random.next()), at: now)
            _ = chipset.takeRequest()
            if random.next() % 200 == 0 { chipset.reset(at: now) }
            return UInt64(truncatingIfNeeded: bytes &+ changes &* 7 &+ chipset.takeTimerTicks())
                ^ UInt64(chipset.isaLines) << 32
        }
        return 0
    }

    @Test func everyDeviceComesBackFromJSONAndGoesOnAsBefore() throws {
        for seed in [UInt64(11), 12, 13] {
            try saveRestoreEqual(PIT8254(), seed: seed, mutate: Self.pitAccess)
            try saveRestoreEqual(Self.rtc, seed: seed, mutate: portAccess(ports: 2))
            try saveRestoreEqual(UART16550A(), seed: seed, mutate: Self.uartAccess)
            try saveRestoreEqual(I8042(), seed: seed, mutate: portAccess(ports: 8))
            try saveRestoreEqual(SystemPorts(), seed: seed, mutate: portAccess(ports: 0x100))
            try saveRestoreEqual(ACPIPowerManagement(), seed: seed, mutate: portAccess(ports: 16))
            try saveRestoreEqual(Self.firmware, seed: seed, mutate: portAccess(ports: 2))
            try saveRestoreEqual(TestDevice(), seed: seed, mutate: portAccess(ports: 0x100))
            try saveRestoreEqual(DebugPorts(), seed: seed) { device, random, _ in
                device.writeConsole(UInt8(truncatingIfNeeded: random.next()))
                return UInt64(device.takeOutput().count)
            }
            try saveRestoreEqual(Self.chipset, seed: seed, mutate: Self.chipsetAccess)
        }
    }

    @Test func randomAccessesTrapNoDevice() {
        survivesRandomAccesses(PIT8254(), seed: 21, Self.pitAccess)
        survivesRandomAccesses(Self.rtc, seed: 22, portAccess(ports: 2))
        survivesRandomAccesses(UART16550A(), seed: 23, Self.uartAccess)
        survivesRandomAccesses(I8042(), seed: 24, portAccess(ports: 8))
        survivesRandomAccesses(SystemPorts(), seed: 25, portAccess(ports: 0x1000))
        survivesRandomAccesses(ACPIPowerManagement(isTimer32Bit: false), seed: 26, portAccess(ports: 16))
        survivesRandomAccesses(Self.firmware, seed: 27, portAccess(ports: 2))
        survivesRandomAccesses(TestDevice(), seed: 28, portAccess(ports: 0x2020))
    }

    @Test func randomAccessesTrapNoChipset() {
        survivesRandomAccesses(Self.chipset, seed: 31, Self.chipsetAccess)
    }

    @Test func hostileStateIsRefused() throws {
        func refuses<D: Device>(_ device: D, _ path: [String], _ value: Any) throws {
            let data = try corrupted(device, path, value)
            #expect(throws: DecodingError.self) { try JSONDecoder().decode(D.self, from: data) }
        }
        try refuses(Self.rtc, ["memory"], [1, 2, 3])
        try refuses(UART16550A(), ["received"], [Int](repeating: 1, count: 17))
        try refuses(Self.firmware, ["offset"], -1)
        try refuses(TestDevice(), ["window"], "AAAA")
        try refuses(PIT8254(), ["counter0", "mode"], 6)
        try refuses(PIT8254(), ["counter0", "access"], 0)
    }

    /// Numbers that no run produces but a file may hold: the device may answer nonsense, it may not trap.
    @Test func hostileNumbersTrapNothing() throws {
        for remaining in [0, 1, UInt32.max] {
            for period in [0, 1, UInt32.max] {
                for mode in 0...5 {
                    var tree = try #require(
                        JSONSerialization.jsonObject(with: JSONEncoder().encode(PIT8254())) as? [String: Any])
                    for name in ["counter0", "counter1", "counter2"] {
                        var counter = try #require(tree[name] as? [String: Any])
                        counter["mode"] = mode
                        counter["remaining"] = remaining
                        counter["period"] = period
                        counter["bcd"] = mode & 1 != 0
                        counter["isArmed"] = true
                        counter["loadsNext"] = period == 1
                        tree[name] = counter
                    }
                    var pit = try JSONDecoder().decode(
                        PIT8254.self, from: JSONSerialization.data(withJSONObject: tree))
                    run(&pit, count: 200, from: Nanoseconds(0), seed: 41, Self.pitAccess)
                }
            }
        }
        for (key, value) in [("nextUpdate", UInt64.max), ("dividerStart", .max), ("pulse", .max), ("nextUpdate", 0)] {
            var rtc = try JSONDecoder().decode(RTC146818.self, from: corrupted(Self.rtc, [key], value))
            run(&rtc, count: 2_000, from: Nanoseconds(5), seed: 42, portAccess(ports: 2))
        }
        var acpi = try JSONDecoder().decode(
            ACPIPowerManagement.self, from: corrupted(ACPIPowerManagement(), ["topBitChanges"], UInt64.max))
        run(&acpi, count: 2_000, from: Nanoseconds(5), seed: 43, portAccess(ports: 16))
        var firmware = try JSONDecoder().decode(
            FirmwareConfig.self, from: corrupted(Self.firmware, ["offset"], Int.max))
        run(&firmware, count: 2_000, from: Nanoseconds(5), seed: 44, portAccess(ports: 2))
    }
}
