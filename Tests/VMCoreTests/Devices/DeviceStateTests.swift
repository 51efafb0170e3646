import Foundation
import Testing
import VMCore

@Suite struct DeviceStateTests {
    static let rtc = RTC146818.specimens[0]
    static let firmware = FirmwareConfig.specimens[0]

    @Test(arguments: testedDevices) func savedStateIsAllOfTheState(_ type: any TestedDevice.Type) throws {
        try saveRestoreEqual(type)
    }

    @Test(arguments: testedDevices) func randomAccessesTrapNothing(_ type: any TestedDevice.Type) {
        survivesRandomAccesses(type, seed: 31)
    }

    @Test(arguments: testedDevices) func damagedStatesTrapNothing(_ type: any TestedDevice.Type) throws {
        try damagedStatesAreHarmless(type, seed: 99)
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
        func make2000Accesses<D: TestedDevice>(_ device: inout D, seed: UInt64) {
            var generator = SeededGenerator(seed: seed)
            device.makeRandomAccesses(2_000, &generator, from: Nanoseconds(5))
        }
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
                    var generator = SeededGenerator(seed: 41)
                    pit.makeRandomAccesses(200, &generator, from: Nanoseconds(0))
                }
            }
        }
        for (key, value) in [("nextUpdate", UInt64.max), ("dividerStart", .max), ("pulse", .max), ("nextUpdate", 0)] {
            var rtc = try JSONDecoder().decode(RTC146818.self, from: corrupted(Self.rtc, [key], value))
            make2000Accesses(&rtc, seed: 42)
        }
        var acpi = try JSONDecoder().decode(
            ACPIPowerManagement.self, from: corrupted(ACPIPowerManagement(), ["topBitChanges"], UInt64.max))
        make2000Accesses(&acpi, seed: 43)
        var firmware = try JSONDecoder().decode(
            FirmwareConfig.self, from: corrupted(Self.firmware, ["offset"], Int.max))
        make2000Accesses(&firmware, seed: 44)
    }
}
