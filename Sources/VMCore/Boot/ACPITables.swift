/// The ACPI tables of the machine, as its firmware would leave them below 1 MiB.
///
/// ACPI specification 6.5, section 5.2 "ACPI System Description Tables"; IA-PC HPET Specification 1.0a, section 3.2.4 for
/// the HPET table. Everything that the tables say is read off the devices.
public struct ACPITables: Sendable {
    /// Where the root pointer lies: at the start of the area that an operating system searches for it (5.2.5.1).
    public static let rootPointer = GuestPhysicalAddress(MemoryMapEntry.firmware.lowerBound)

    /// The bytes from `rootPointer` on.
    public private(set) var image: [UInt8] = []

    private static let start = UInt32(rootPointer.rawValue)
    private static let rootPointerBytes = 36

    public init() {
        // The root pointer comes first and is filled in last.
        image = [UInt8](repeating: 0, count: Self.rootPointerBytes)
        let control = append(Self.firmwareControl, alignedTo: 64)
        let dsdt = append(Self.table("DSDT", revision: 2, Self.devices.flatMap(\.bytes)))
        let tables = [
            append(Self.table("FACP", revision: 6, Self.fixedDescription(control: control, dsdt: dsdt))),
            append(Self.table("APIC", revision: 5, Self.interruptControllers)),
            append(Self.table("HPET", revision: 1, Self.eventTimer)),
        ]
        let rsdt = append(Self.table("RSDT", revision: 1, tables.flatMap(\.bytes)))
        let xsdt = append(Self.table("XSDT", revision: 1, tables.flatMap { UInt64($0).bytes }))
        image.replaceSubrange(0..<Self.rootPointerBytes, with: Self.rootPointer(rsdt: rsdt, xsdt: xsdt))
    }

    /// Puts the tables into the machine's memory.
    func write(into memory: GuestMemory) { memory.write(image, at: Self.rootPointer) }

    private mutating func append(_ bytes: [UInt8], alignedTo alignment: Int = 16) -> UInt32 {
        image += [UInt8](repeating: 0, count: (alignment - image.count % alignment) % alignment)
        defer { image += bytes }
        return Self.start + UInt32(image.count)
    }

    // MARK: Framing

    private static let oem = Array("VMRR  ".utf8)

    /// 5.2.6: the header that tables have, with its checksum, and what follows.
    private static func table(_ signature: String, revision: UInt8, _ body: [UInt8]) -> [UInt8] {
        var bytes = Array(signature.utf8) + UInt32(36 + body.count).bytes + [revision, 0] + oem + Array("VMRRPC  ".utf8)
        bytes += UInt32(1).bytes + Array("VMRR".utf8) + UInt32(1).bytes + body
        bytes[9] = checksum(bytes)
        return bytes
    }

    /// What makes the sum of all bytes 0.
    private static func checksum(_ bytes: some Sequence<UInt8>) -> UInt8 { 0 &- bytes.reduce(0, &+) }

    /// 5.2.5.3.
    private static func rootPointer(rsdt: UInt32, xsdt: UInt32) -> [UInt8] {
        var bytes = Array("RSD PTR ".utf8) + [0] + oem + [2] + rsdt.bytes
        bytes += UInt32(rootPointerBytes).bytes + UInt64(xsdt).bytes + [0, 0, 0, 0]
        bytes[8] = checksum(bytes[..<20])
        bytes[32] = checksum(bytes)
        return bytes
    }

    /// 5.2.10: nothing wakes this machine, and nobody shares its global lock.
    private static let firmwareControl = Array("FACS".utf8) + UInt32(64).bytes + [UInt8](repeating: 0, count: 24) + [2]
        + [UInt8](repeating: 0, count: 31)

    // MARK: Tables

    /// 5.2.3.2: an address with the size of its register.
    private static func address(inMemory: Bool = false, _ address: UInt64, bytes count: UInt8) -> [UInt8] {
        let accessSize: UInt8 = switch count {
        case 1: 1
        case 2: 2
        case 4: 3
        default: 0  // undefined: as the table's own specification says
        }
        return [inMemory ? 0 : 1, count * 8, 0, accessSize] + address.bytes
    }

    private static let noAddress = [UInt8](repeating: 0, count: 12)

    private enum FixedFlags {
        static let wbinvd: UInt32 = 1 << 0
        static let c1: UInt32 = 1 << 2
        static let noPowerButton: UInt32 = 1 << 4
        static let noSleepButton: UInt32 = 1 << 5
        static let noRTCWake: UInt32 = 1 << 6
        static let timer32Bit: UInt32 = 1 << 8
        static let resetRegister: UInt32 = 1 << 10
        static let all = wbinvd | c1 | noPowerButton | noSleepButton | noRTCWake | timer32Bit | resetRegister
    }

    private enum BootArchitecture {
        static let legacyDevices: UInt16 = 1 << 0
        /// Of the keyboard controller only the reset line is wired: nothing is plugged in, so it isn't worth a probe.
        static let keyboardController: UInt16 = 0 << 1
        static let noVGA: UInt16 = 1 << 2
        static let noMSI: UInt16 = 1 << 3
        static let noASPM: UInt16 = 1 << 4
        static let all = legacyDevices | keyboardController | noVGA | noMSI | noASPM
    }

    /// What to write to the reset register: bit 2 resets, bit 1 makes it a hard one.
    private static let resetValue: UInt8 = 0b0110
    /// Longer than any that means a C2 or C3 state (5.2.9, P_LVL2_LAT and P_LVL3_LAT).
    private static let noSuchState = UInt16.max
    private static let centuryRegister: UInt8 = 0x32

    /// 5.2.9: fields in the order of table 5.9, after the header.
    private static func fixedDescription(control: UInt32, dsdt: UInt32) -> [UInt8] {
        typealias Power = ACPIPowerManagement
        let (event, switchOff, timer) = (Power.pm1aEventBlock, Power.pm1aControlBlock, Power.pmTimerBlock)
        var bytes = control.bytes + dsdt.bytes + [0, 0] + UInt16(Power.sciIRQ).bytes
        bytes += UInt32(0).bytes + [0, 0, 0, 0]  // no SMI command port: ACPI mode is always on
        bytes += UInt32(event).bytes + UInt32(0).bytes + UInt32(switchOff).bytes + UInt32(0).bytes
        bytes += UInt32(0).bytes + UInt32(timer).bytes + UInt32(0).bytes + UInt32(0).bytes
        bytes += [4, 2, 0, 4, 0, 0, 0, 0]  // lengths: PM1 event, PM1 control, PM2, timer, no general events, no C states
        bytes += noSuchState.bytes + noSuchState.bytes + [0, 0, 0, 0]  // no flush by reading, no duty cycle
        bytes += [0, 0] + [0, 0, centuryRegister]
        bytes += BootArchitecture.all.bytes + [0] + FixedFlags.all.bytes
        bytes += address(UInt64(SystemPorts.Port.resetControl), bytes: 1) + [resetValue] + [0, 0] + [5]
        bytes += UInt64(0).bytes + UInt64(dsdt).bytes  // the 32-bit address of the FACS stands alone
        bytes += address(UInt64(event), bytes: 4) + noAddress + address(UInt64(switchOff), bytes: 2) + noAddress
        bytes += noAddress + address(UInt64(timer), bytes: 4) + noAddress + noAddress
        bytes += noAddress + noAddress + UInt64(0).bytes  // sleep registers, hypervisor
        return bytes
    }

    /// 5.2.12: one local APIC, one I/O APIC; the timer on pin 2, the SCI active high and level-triggered; NMI on LINT1.
    private static var interruptControllers: [UInt8] {
        let (timer, sci) = (UInt32(InterruptFabric.pinOfISALine0), UInt8(ACPIPowerManagement.sciIRQ))
        let activeHighLevel: UInt16 = 0b1101
        var bytes = UInt32(truncatingIfNeeded: LocalAPIC.defaultAddress.rawValue).bytes + UInt32(1).bytes  // and two 8259s
        bytes += [0, 8, 0, 0] + UInt32(1).bytes
        bytes += [1, 12, 0, 0] + UInt32(truncatingIfNeeded: IOAPIC.defaultAddress.rawValue).bytes + UInt32(0).bytes
        bytes += [2, 10, 0, 0] + timer.bytes + UInt16(0).bytes
        bytes += [2, 10, 0, sci] + UInt32(sci).bytes + activeHighLevel.bytes
        bytes += [4, 6, 0xFF] + UInt16(0).bytes + [1]
        return bytes
    }

    private static var eventTimer: [UInt8] {
        HPET.identification.bytes + address(inMemory: true, HPET.address.rawValue, bytes: 8) + [0] + UInt16(1).bytes + [0]
    }

    /// The devices that no bus shows, and the values that switch the machine off. There is no PCI host bridge.
    static let devices: [AMLTerm] = [
        .name("\\_S5", .package(Array(repeating: .integer(UInt64(ACPIPowerManagement.sleepTypeS5)), count: 2)
            + [.integer(0), .integer(0)])),
        .scope("\\_SB", [
            device("COM1", "PNP0501", [.ports(0x3F8, count: 8), .interrupt(4)]),
            device("RTC", "PNP0B00", [.ports(0x70, count: 2), .interrupt(8)]),
            device("TIMR", "PNP0100", [.ports(0x40, count: 4), .interrupt(0)]),
            device("PIC", "PNP0000", [.ports(0x20, count: 2), .ports(0xA0, count: 2), .ports(0x4D0, count: 2),
                                      .interrupt(2)]),
            device("HPET", "PNP0103", [.memory(UInt32(HPET.address.rawValue), bytes: UInt32(HPET.size))]),
        ]),
    ]

    private static func device(_ name: String, _ id: String, _ resources: [ACPIResource]) -> AMLTerm {
        .device(name, [.name("_HID", .eisaID(id)), .name("_UID", .integer(0)), .name("_CRS", .resources(resources))])
    }
}
