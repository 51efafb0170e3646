/// Starts an ELF kernel by its PVH note: a 32-bit entry point and a structure that says what the machine has.
///
/// Source: Xen, docs/misc/pvh.pandoc "x86/HVM direct boot ABI" and xen/include/public/arch-x86/hvm/start_info.h.
public enum PVHBoot {
    private enum Place {
        static let startInfo: UInt64 = 0x7000
        static let moduleList: UInt64 = 0x7100
        static let memoryMap: UInt64 = 0x8000
        static let commandLine: UInt64 = 0x2_0000
    }

    private static let startInfoMagic: UInt32 = 0x336E_C578
    /// XEN_ELFNOTE_PHYS32_ENTRY, of the name Xen.
    private static let entryNote: UInt32 = 18
    private static let noteName = Array("Xen\0".utf8)
    /// What Linux keeps of a command line: COMMAND_LINE_SIZE of arch/x86, its final zero not counted.
    static let longestCommandLine = 2047

    public static func load(_ guest: LinuxGuest, into memory: GuestMemory) throws(BootError) -> BootResult {
        let kernel = try ELFImage(guest.kernel)
        guard !kernel.segments.isEmpty else { throw .badImage("the ELF file has nothing to load") }
        guard let entry = entry(kernel) else { throw .badImage("the ELF file has no PVH note") }
        let line = Array(guest.commandLine.utf8)
        guard line.count <= longestCommandLine else {
            throw .usage("the command line has \(line.count) bytes; \(longestCommandLine) is the most")
        }
        for segment in kernel.segments { try place(segment, of: kernel, in: memory) }
        let end = kernel.segments.map { $0.physical.rawValue + $0.memoryBytes }.max() ?? 0
        let initrd = try LinuxBoot.placeInitrd(guest.initrd, above: end, below: memory.map.lowEnd, in: memory)
        memory.write(line + [0], at: .init(Place.commandLine))
        writeStartInfo(initrd: initrd, into: memory)
        return BootResult(state: entryState(entry), code: kernel.code)
    }

    /// The entry point that the kernel's notes give.
    private static func entry(_ kernel: ELFImage) -> UInt32? {
        for notes in kernel.notes {
            let reader = ImageReader(bytes: Array(kernel.bytes[notes]))
            var at = 0
            while let nameBytes: UInt32 = reader.load(at), let bytes: UInt32 = reader.load(at + 4),
                let type: UInt32 = reader.load(at + 8) {
                let name = at + 12
                let content = name + (Int(nameBytes) + 3) & ~3
                if type == entryNote, reader.slice(UInt64(name), UInt64(nameBytes))?.elementsEqual(noteName) == true,
                    bytes >= 4 {
                    return reader.load(content)
                }
                at = content + (Int(bytes) + 3) & ~3
            }
        }
        return nil
    }

    private static func place(_ segment: ELFImage.Segment, of kernel: ELFImage, in memory: GuestMemory) throws(BootError) {
        let start = segment.physical.rawValue
        let end = start + segment.memoryBytes
        guard start >= LinuxImage.highAddress, end <= 4 << 30 else {
            throw .badImage("the kernel wants memory from \(hex(start)) to \(hex(end)): it has to lie between "
                + "1 MiB and 4 GiB")
        }
        guard end <= memory.map.lowEnd else {
            throw .usage("the kernel needs memory up to \(LinuxBoot.megabytes(end)) MiB, the machine has "
                + "\(memory.map.lowEnd >> 20); give it more with --memory")
        }
        memory.write(Array(kernel.bytes[segment.offset..<(segment.offset + segment.fileBytes)]), at: segment.physical)
    }

    private static func writeStartInfo(initrd: Range<UInt64>, into memory: GuestMemory) {
        let map = MemoryMapEntry.all(of: memory.map)
        let modules: [UInt8] = initrd.isEmpty
            ? [] : initrd.lowerBound.bytes + UInt64(initrd.count).bytes + UInt64(0).bytes + UInt64(0).bytes
        memory.write(modules, at: .init(Place.moduleList))
        memory.write(map.flatMap { $0.base.bytes + $0.length.bytes + $0.kind.rawValue.bytes + UInt32(0).bytes },
                     at: .init(Place.memoryMap))
        var info = startInfoMagic.bytes + UInt32(1).bytes + UInt32(0).bytes + UInt32(initrd.isEmpty ? 0 : 1).bytes
        info += Place.moduleList.bytes + Place.commandLine.bytes + ACPITables.rootPointer.rawValue.bytes
        info += Place.memoryMap.bytes + UInt32(map.count).bytes + UInt32(0).bytes
        memory.write(info, at: .init(Place.startInfo))
    }

    private static func entryState(_ entry: UInt32) -> CPUState {
        var state = CPUState.reset()
        let data = SegmentRegister(limit: .max, attributes: 0xC93)
        (state.ds, state.es, state.fs, state.gs, state.ss) = (data, data, data, data, data)
        state.cs = SegmentRegister(selector: 0x08, limit: .max, attributes: 0xC9B)
        state.tr = SegmentRegister(limit: 0x67, attributes: 0x8B)
        state.control.cr0 = 0x11
        state.general.rip = UInt64(entry)
        state.general.rbx = Place.startInfo
        state.general.rdx = 0
        return state
    }
}
