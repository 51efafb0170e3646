/// What the firmware configuration device tells a guest: fixed for the life of a machine.
///
/// Encoded, byte strings are base64 in JSON; they can be tens of megabytes (a kernel, an initrd).
public struct FirmwareContents: Codable, Equatable, Sendable {
    /// A named item in the file directory.
    public struct File: Codable, Equatable, Sendable {
        /// At most 55 bytes of UTF-8 are visible to a guest.
        public var name: String
        @DataCoded public var bytes: [UInt8]

        public init(name: String, bytes: [UInt8]) {
            self.name = name
            self.bytes = bytes
        }
    }

    /// Bytes with the guest physical address that a loader is to put them at.
    public struct Blob: Equatable, Sendable, Codable {
        public var address: UInt32
        @DataCoded public var bytes: [UInt8]

        public init(address: UInt32, bytes: [UInt8]) {
            self.address = address
            self.bytes = bytes
        }
    }

    public var memoryBytes: UInt64
    public var cpuCount: UInt16
    public var maxCPUs: UInt16
    public var kernel: Blob?
    public var kernelEntry: UInt32
    public var initrd: Blob?
    public var commandLine: Blob?
    public var setup: Blob?
    /// The letter of the device to boot from, as in QEMU's `-boot`; 0 for none.
    public var bootDevice: UInt8
    public var files: [File]

    public init(
        memoryBytes: UInt64 = 0, cpuCount: UInt16 = 1, maxCPUs: UInt16 = 1, kernel: Blob? = nil,
        kernelEntry: UInt32 = 0, initrd: Blob? = nil, commandLine: Blob? = nil, setup: Blob? = nil,
        bootDevice: UInt8 = 0, files: [File] = []
    ) {
        self.memoryBytes = memoryBytes
        self.cpuCount = cpuCount
        self.maxCPUs = maxCPUs
        self.kernel = kernel
        self.kernelEntry = kernelEntry
        self.initrd = initrd
        self.commandLine = commandLine
        self.setup = setup
        self.bootDevice = bootDevice
        self.files = files
    }
}
