/// What a `Chipset` is built from: part of the machine configuration of a trace.
public struct ChipsetConfiguration: Codable, Equatable, Sendable {
    /// The size of RAM.
    public var memoryBytes: UInt64
    /// Where RAM below 4 GiB ends at the latest; what goes beyond continues at 4 GiB.
    public var lowMemoryLimit: UInt64 = 0xc000_0000
    /// The wall-clock time at machine time 0, seconds since 1970-01-01T00:00:00 UTC.
    public var wallClockStart: Int64
    /// Whether the device that kvm-unit-tests expect is there. It takes port 0xe9 from the debug console.
    public var testDevice = false
    /// Whether there is a high precision event timer.
    public var hpet = false
    public var cpuCount: UInt16 = 1
    public var maxCPUs: UInt16 = 1
    /// Whether the ACPI timer counts 32 bits or 24.
    public var isPMTimer32Bit = true

    public var kernel: [UInt8]?
    public var kernelAddress: UInt32 = 0x10_0000
    public var kernelEntry: UInt32 = 0x10_0000
    public var initrd: [UInt8]?
    public var initrdAddress: UInt32 = 0
    /// The kernel's command line as the guest is to read it, with its final zero if there is to be one.
    public var commandLine: [UInt8]?
    public var commandLineAddress: UInt32 = 0x2_0000
    /// The real-mode part of a Linux kernel image.
    public var setup: [UInt8]?
    public var setupAddress: UInt32 = 0x1_0000
    public var bootDevice: UInt8 = 0
    public var files: [FirmwareContents.File] = []

    public init(memoryBytes: UInt64, wallClockStart: Int64, testDevice: Bool = false) {
        self.memoryBytes = memoryBytes
        self.wallClockStart = wallClockStart
        self.testDevice = testDevice
    }

    /// What the firmware configuration device shows of this.
    public var firmwareContents: FirmwareContents {
        func blob(_ address: UInt32, _ bytes: [UInt8]?) -> FirmwareContents.Blob? {
            bytes.map { FirmwareContents.Blob(address: address, bytes: $0) }
        }
        return FirmwareContents(
            memoryBytes: memoryBytes, cpuCount: cpuCount, maxCPUs: maxCPUs, kernel: blob(kernelAddress, kernel),
            kernelEntry: kernelEntry, initrd: blob(initrdAddress, initrd),
            commandLine: blob(commandLineAddress, commandLine), setup: blob(setupAddress, setup),
            bootDevice: bootDevice, files: files)
    }
}
