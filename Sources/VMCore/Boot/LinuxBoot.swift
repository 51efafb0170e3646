/// A Linux kernel and what its boot loader passes to it.
public struct LinuxGuest: Sendable {
    /// A bzImage, or an ELF file with a PVH note.
    public var kernel: [UInt8]
    public var commandLine: String
    public var initrd: [UInt8]?
    /// How a bzImage is entered.
    public var bootProtocol: LinuxBootProtocol

    public init(kernel: [UInt8], commandLine: String, initrd: [UInt8]? = nil,
                bootProtocol: LinuxBootProtocol = .automatic) {
        self.kernel = kernel
        self.commandLine = commandLine
        self.initrd = initrd
        self.bootProtocol = bootProtocol
    }

    /// Whether an ELF file has what a Linux kernel has, and not merely a PVH note.
    var isLinux: Bool { (try? ELFImage(kernel))?.section("__ksymtab") != nil }
}

/// How a bzImage is entered.
public enum LinuxBootProtocol: String, CaseIterable, Sendable {
    /// In 64-bit mode where the kernel can be, else in real mode.
    case automatic = "auto"
    case linux64
    case linux16
}

/// Starts a Linux kernel by the 64-bit boot protocol, or by the 16-bit one (`LinuxRealModeBoot`).
///
/// Source: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol", and zero-page.rst for the boot parameters.
public enum LinuxBoot {
    /// What the loader leaves in base memory.
    private enum Place {
        static let descriptors: UInt64 = 0x6000
        static let bootParameters: UInt64 = 0x7000
        /// Six pages: one of level 4, one of level 3, four of level 2.
        static let pageTables: UInt64 = 0x8000
        static let commandLine: UInt64 = 0x2_0000
        static let commandLineLimit = 0x1_0000
    }

    /// Fields of the boot parameters that aren't the setup header's.
    private enum Parameter {
        static let rootPointer: UInt64 = 0x070
        static let mapCount: UInt64 = 0x1E8
        static let map: UInt64 = 0x2D0
        static let mapLimit = 128
    }

    /// The selectors that the protocol asks for.
    private enum Selector {
        static let code: UInt16 = 0x10
        static let data: UInt16 = 0x18
    }

    /// The entry point's offset in the loaded kernel.
    private static let entry64: UInt64 = 0x200

    public static func load(_ guest: LinuxGuest, into memory: GuestMemory) throws(BootError) -> BootResult {
        let image = try LinuxImage(guest.kernel)
        guard guest.bootProtocol != .linux64 || image.has64BitEntry else {
            throw .usage("this kernel has no 64-bit entry point: start it with --boot linux16")
        }
        let inRealMode = guest.bootProtocol == .linux16 || !image.has64BitEntry
        let line = Array(guest.commandLine.utf8)
        let longest = min(image.longestCommandLine,
                          (inRealMode ? LinuxRealModeBoot.commandLineLimit : Place.commandLineLimit) - 1)
        guard line.count <= longest else {
            throw .usage("the command line has \(line.count) bytes; this kernel takes \(longest)")
        }
        guard !inRealMode else {
            let initrd = try place(image, initrd: guest.initrd, into: memory)
            return LinuxRealModeBoot.start(image, commandLine: line, initrd: initrd, in: memory)
        }
        let initrd = try place(image, initrd: guest.initrd, into: memory)
        memory.write(line + [0], at: .init(Place.commandLine))
        writeParameters(image, initrd: initrd, into: memory)
        writeTables(into: memory)
        return BootResult(state: entryState(image), code: [])
    }

    /// Puts kernel and initrd where they belong; returns where the initrd lies.
    private static func place(_ image: LinuxImage, initrd: [UInt8]?, into memory: GuestMemory) throws(BootError)
        -> Range<UInt64> {
        let end = image.address + image.memoryBytes
        let top = memory.map.lowEnd
        guard end <= top else {
            throw .usage("the kernel needs \(megabytes(end)) MiB of memory to start in, the machine has "
                + "\(top >> 20); give it more with --memory")
        }
        memory.write(Array(image.kernel), at: .init(image.address))
        return try placeInitrd(initrd, above: end, below: min(top, image.highestInitrdAddress + 1), in: memory)
    }

    /// Puts an initrd as high as it may lie; returns where that is.
    static func placeInitrd(_ initrd: [UInt8]?, above end: UInt64, below limit: UInt64, in memory: GuestMemory)
        throws(BootError) -> Range<UInt64> {
        guard let initrd, !initrd.isEmpty else { return 0..<0 }
        let room = limit > end ? limit - end : 0
        guard UInt64(initrd.count) + UInt64(pageSize) <= room else {
            throw .usage("the initrd has \(initrd.count) bytes; beside the kernel there is room for "
                + "\(room & ~UInt64(pageSize - 1)): give the machine more with --memory")
        }
        let start = (limit - UInt64(initrd.count)) & ~UInt64(pageSize - 1)
        memory.write(initrd, at: .init(start))
        return start..<(start + UInt64(initrd.count))
    }

    static func megabytes(_ bytes: UInt64) -> UInt64 { (bytes + (1 << 20) - 1) >> 20 }

    private static func writeParameters(_ image: LinuxImage, initrd: Range<UInt64>, into memory: GuestMemory) {
        func put(_ bytes: [UInt8], _ offset: UInt64) { memory.write(bytes, at: .init(Place.bootParameters + offset)) }
        func put<T: FixedWidthInteger>(_ value: T, _ offset: Int) { put(value.bytes, UInt64(offset)) }
        put([UInt8](repeating: 0, count: pageSize), 0)
        put(Array(image.header), UInt64(LinuxImage.Offset.setupSectors))
        put(LinuxImage.unknownLoader, LinuxImage.Offset.loaderType)
        put(UInt32(image.address), LinuxImage.Offset.code32Start)
        put(UInt32(truncatingIfNeeded: initrd.lowerBound), LinuxImage.Offset.initrdAddress)
        put(UInt32(truncatingIfNeeded: initrd.count), LinuxImage.Offset.initrdSize)
        put(UInt32(Place.commandLine), LinuxImage.Offset.commandLineAddress)
        put(UInt64(0), LinuxImage.Offset.setupData)
        put(ACPITables.rootPointer.rawValue.bytes, Parameter.rootPointer)
        let map = MemoryMapEntry.all(of: memory.map).prefix(Parameter.mapLimit)
        put([UInt8(map.count)], Parameter.mapCount)
        put(map.flatMap(\.bytes), Parameter.map)
    }

    /// Page tables that map the first 4 GiB to themselves, and a descriptor table with the protocol's selectors.
    private static func writeTables(into memory: GuestMemory) {
        let (present, writable, large): (UInt64, UInt64, UInt64) = (1 << 0, 1 << 1, 1 << 7)
        let page = UInt64(pageSize)
        let (level4, level3, level2) = (Place.pageTables, Place.pageTables + page, Place.pageTables + 2 * page)
        memory.write((level3 | present | writable).bytes, at: .init(level4))
        for gigabyte in 0..<4 as Range<UInt64> {
            let table = level2 + gigabyte * page
            memory.write((table | present | writable).bytes, at: .init(level3 + 8 * gigabyte))
            let entries = (0..<512 as Range<UInt64>).map { gigabyte << 30 | $0 << 21 | present | writable | large }
            memory.write(entries.flatMap(\.bytes), at: .init(table))
        }
        // Flat segments over 4 GiB: 64-bit code, and data.
        let descriptors: [UInt64] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF]
        memory.write(descriptors.flatMap(\.bytes), at: .init(Place.descriptors))
    }

    private static func entryState(_ image: LinuxImage) -> CPUState {
        var state = CPUState.reset()
        let data = SegmentRegister(selector: Selector.data, limit: .max, attributes: 0xC93)
        (state.ds, state.es, state.fs, state.gs, state.ss) = (data, data, data, data, data)
        state.cs = SegmentRegister(selector: Selector.code, limit: .max, attributes: 0xA9B)
        state.gdtr = DescriptorTable(base: Place.descriptors, limit: 4 * 8 - 1)
        state.control.cr0 = 0x8000_0011  // paging, protection
        state.control.cr3 = Place.pageTables
        state.control.cr4 = 1 << 5  // PAE
        state.control.efer = 0x500  // long mode, enabled and active
        state.general.rip = image.address + entry64
        state.general.rdx = 0
        state.general.rsi = Place.bootParameters
        return state
    }
}
