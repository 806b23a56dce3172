"""What rasters may make GDAL do."""

import http.server
import os
import zlib
from struct import pack
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from changenet.segment import raster_files
from changenet.segment.raster_files import opened
from fiducial.errors import DatasetError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def write(path, values=None, **more):
    values = np.full((1, 64, 64), 7, np.uint8) if values is None else values
    profile = {"driver": "GTiff", "count": len(values), "dtype": values.dtype.name}
    with rasterio.open(path, "w", **profile, height=values.shape[1], width=values.shape[2], **more) as file:
        file.write(values)
    return path


@pytest.fixture
def server():
    """An address on this machine, and what was asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def wms(url):
    corners = (
        "<UpperLeftX>0</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX><LowerRightY>0</LowerRightY>"
    )
    window = f"<DataWindow>{corners}<SizeX>32</SizeX><SizeY>32</SizeY></DataWindow>"
    service = f'<Service name="TMS"><ServerUrl>{url}/${{z}}</ServerUrl></Service>'
    return f"<GDAL_WMS>{service}{window}<BandsCount>1</BandsCount></GDAL_WMS>"


def read_all(path, **where):
    with opened(path, **where) as file:
        file.read(out_shape=(file.count, 8, 8))
        return file.read(), file.read_masks()


class TestNothingElseIsOpened:
    @pytest.mark.parametrize("name", ["a.tif", "a.jp2", "a.vrt"])
    def test_another_kind_of_file(self, tmp_path, server, name):
        url, asked = server
        (tmp_path / name).write_text(wms(url))
        with pytest.raises(DatasetError, match=name):
            read_all(tmp_path / name)
        assert asked == []

    @pytest.mark.parametrize("suffix", [".ovr", ".msk"])
    def test_beside_it(self, tmp_path, server, suffix):
        url, asked = server
        path = write(tmp_path / "a.tif")
        (tmp_path / f"a.tif{suffix}").write_text(wms(url))
        with pytest.raises(DatasetError, match=f"a.tif{suffix} · overviews or a mask that are no TIFF"):
            read_all(path)
        assert asked == []

    @pytest.mark.parametrize("inside", [True, False])
    def test_overviews_named_in_it(self, tmp_path, server, inside):
        url, asked = server
        path, name = write(tmp_path / "a.tif"), f"/vsicurl/{url}/o.tif"
        if inside:
            with rasterio.open(path, "r+") as file:
                file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=name)
        else:
            item = f'<MDI key="OVERVIEW_FILE">{name}</MDI>'
            text = f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>'
            (tmp_path / "a.tif.aux.xml").write_text(text)
        with pytest.raises(DatasetError, match=r"its overviews are in /vsicurl/http"):
            read_all(path)
        assert asked == []

    def test_its_own_overviews_masks_and_side_files_are_read(self, tmp_path):
        path = write(tmp_path / "a.tif")
        (tmp_path / "a.tfw").write_text("2\n0\n0\n-2\n101\n199\n")
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as file:
            file.build_overviews([2])
        mask = np.zeros((64, 64), bool)
        mask[:32] = True
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
            file.write_mask(mask)
        assert {other.suffix for other in tmp_path.iterdir()} == {".tif", ".tfw", ".ovr", ".msk"}
        with opened(path) as file:
            assert (file.transform.a, file.overviews(1)) == (2, [2])
            assert ((file.read_masks(1) > 0) == mask).all()


class TestVrt:
    @staticmethod
    def of(path, *names, source="SimpleSource", relative="1", band="", extra=""):
        named = (f'<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename>' for name in names)
        sources = "".join(f"<{source}>{name}<SourceBand>1</SourceBand></{source}>" for name in named)
        bands = f'<VRTRasterBand dataType="Byte" band="1"{band}>{sources}</VRTRasterBand>'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'<VRTDataset rasterXSize="64" rasterYSize="64">{extra}{bands}</VRTDataset>')
        return path

    @pytest.fixture
    def root(self, tmp_path):
        (tmp_path / "data" / "A").mkdir(parents=True)
        (tmp_path / "data" / "tiles").mkdir()
        write(tmp_path / "data" / "tiles" / "t.tif")
        write(tmp_path / "data" / "A" / "t.tif")
        write(tmp_path / "secret.tif")
        return tmp_path / "data"

    def test_files_below_its_folder_and_the_root(self, root):
        assert (read_all(self.of(root / "A" / "x.vrt", "t.tif"))[0] == 7).all()
        path = self.of(root / "A" / "x.vrt", "../tiles/t.tif", "t.tif")
        assert (read_all(path, root=root)[0] == 7).all()
        with pytest.raises(DatasetError, match="lies outside"):
            read_all(path)
        path = self.of(root / "A" / "y.vrt", f"{root}/tiles/t.tif", relative="0")
        assert (read_all(path, root=root)[0] == 7).all()

    def test_a_picture_of_another_format(self, root):
        Image.fromarray(np.full((64, 64), 9, np.uint8)).save(root / "A" / "p.png")
        assert (read_all(self.of(root / "A" / "x.vrt", "p.png"))[0] == 9).all()

    def test_what_gdal_writes(self, root):
        values = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
        place = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 46e5)}
        path = write(root / "A" / "rgb.tif", values, nodata=0, photometric="rgb", **place)
        shutil = pytest.importorskip("rasterio.shutil")
        shutil.copy(path, root / "A" / "rgb.vrt", driver="VRT")
        assert (read_all(root / "A" / "rgb.vrt")[0] == values).all()

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("../../secret.tif", "lies outside of"),
            ("link.tif", "lies outside of"),
            ("gone.tif", "no image file"),
            ("", "no image file"),
            ("x.vrt", "no image file"),
            ("/vsicurl/{url}/a.tif", "not on this machine"),
            ("{url}/a.tif", "not on this machine"),
            ("vrt://{url}/a.tif", "not on this machine"),
            ("WMS:{url}/a", "not on this machine"),
            ("GTIFF_DIR:1:t.tif", "no image file"),
            ("&lt;VRTDataset/&gt;", "no image file"),
            ("/dev/zero", "no image file"),
            ("web.tif", "web.tif"),
        ],
    )
    @pytest.mark.parametrize("relative", ["0", "1"])
    def test_other_files(self, root, server, name, found, relative, monkeypatch):
        url, asked = server
        monkeypatch.chdir(root / "A")
        (root / "A" / "link.tif").symlink_to("../../secret.tif")
        (root / "A" / "web.tif").write_text(wms(url))
        path = self.of(root / "A" / "x.vrt", "t.tif", name.format(url=url), relative=relative)
        with pytest.raises(DatasetError, match=found):
            read_all(path, root=root)
        assert asked == []

    @pytest.mark.parametrize(
        "more",
        [
            {"band": ' subClass="VRTRawRasterBand"'},
            {"band": ' subclass="VRTDerivedRasterBand"'},
            {"source": "KernelFilteredSource"},
            {"extra": "<!-- a comment -->"},
            {"extra": "<GDALWarpOptions><SourceDataset>/etc/passwd</SourceDataset></GDALWarpOptions>"},
            {"extra": "<OpenOptions><OOI key='X'>1</OOI></OpenOptions>"},
            {"extra": "<Overview><SourceFilename>/vsicurl/http://x/</SourceFilename></Overview>"},
            {"relative": "2"},
        ],
    )
    def test_more_than_a_mosaic(self, root, more):
        with pytest.raises(DatasetError, match=r"x\.vrt · a VRT with"):
            read_all(self.of(root / "A" / "x.vrt", "t.tif", **more), root=root)

    def test_a_name_in_an_attribute(self, root):
        path = self.of(root / "A" / "x.vrt", "t.tif")
        path.write_text(path.read_text().replace("<SimpleSource>", '<SimpleSource sourceFilename="/vsicurl/http://x">'))
        with pytest.raises(DatasetError, match="more than a mosaic"):
            read_all(path, root=root)

    def test_bombs_and_rubbish(self, root):
        path = root / "A" / "x.vrt"
        laughs = "".join(f'<!ENTITY a{k + 1} "{10 * f"&a{k};"}">' for k in range(20))
        for text in (
            f'<!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]><VRTDataset>&a20;</VRTDataset>',
            "<VRTDataset>" + 100_000 * "<Metadata>",
            "<VRTDataset rasterXSize='x' rasterYSize='-1'/>",
            "\ufeff<?xml version='1.0' encoding='utf-7'?><VRTDataset/>",
            "no XML",
        ):
            path.write_text(text)
            with pytest.raises(DatasetError, match=r"x\.vrt"):
                read_all(path)
        path.write_bytes("<VRTDataset/>".encode("utf-16"))
        with pytest.raises(DatasetError, match="cannot be read"):
            read_all(path)


class TestBounds:
    def test_a_bomb(self, tmp_path):
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", count=1, height=40_000, width=40_000, dtype="uint8", sparse_ok=True
        ):
            pass
        with pytest.raises(DatasetError, match=r"40,000 × 40,000 pixels in [\d,]+ bytes"):
            read_all(tmp_path / "a.tif")

    def test_a_png_bomb_that_is_called_tif(self, tmp_path):
        def chunk(kind, data):
            return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

        head = chunk(b"IHDR", pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
        content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(DatasetError, match="60,000 × 60,000 pixels"):
            read_all(tmp_path / "a.tif")

    def test_large_ones_with_content_are_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(raster_files, "MAX_PIXELS", 100)
        assert read_all(write(tmp_path / "a.tif"))[0].shape == (1, 64, 64)

    def test_odd_places(self, tmp_path):
        (tmp_path / "folder.tif").mkdir()
        (tmp_path / "empty.tif").touch()
        os.mkfifo(tmp_path / "pipe.tif")
        for name, found in {
            "folder": "a folder",
            "empty": "an empty file",
            "pipe": "a pipe",
            "gone": "no such",
        }.items():
            with pytest.raises(DatasetError, match=found):
                read_all(tmp_path / f"{name}.tif")
